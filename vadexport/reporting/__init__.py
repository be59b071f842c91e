"""The faces of one `Verification`: JSON, a web page, a table for the terminal."""

from vadexport.reporting.json_report import latency_json, parity_json
from vadexport.reporting.table import summary_table
from vadexport.reporting.writing import front_page, remove_reports, write_reports

__all__ = [
    "front_page",
    "latency_json",
    "parity_json",
    "remove_reports",
    "summary_table",
    "write_reports",
]
