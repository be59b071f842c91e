"""Tables of benchmarks in documents, between two markers."""

from pathlib import Path

_BEGIN, _END = "<!-- table: begin -->\n", "<!-- table: end -->\n"


def replace_table(document: Path, table: str) -> None:
    """Put `table` where the document's table is."""
    before, rest = document.read_text(encoding="utf-8").split(_BEGIN)
    after = rest.split(_END)[1]
    document.write_text(f"{before}{_BEGIN}{table}{_END}{after}", encoding="utf-8")
