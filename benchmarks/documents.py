"""Tables of benchmarks in documents, between two markers."""

from pathlib import Path

_BEGIN, _END = "<!-- table: begin -->\n", "<!-- table: end -->\n"


def replace_table(document: Path, table: str) -> None:
    """Put `table` where the document's table is."""
    before, _, after = _parts(document)
    document.write_text(f"{before}{_BEGIN}{table}{_END}{after}", encoding="utf-8")


def table_rows(document: Path) -> dict[str, str]:
    """Lines of the document's table below its head, by their first cells."""
    _, table, _ = _parts(document)
    return {line.split("|")[1].strip(): line for line in table.splitlines()[2:]}


def _parts(document: Path) -> tuple[str, str, str]:
    """What stands before the table, the table, and what stands behind it."""
    before, rest = document.read_text(encoding="utf-8").split(_BEGIN)
    table, after = rest.split(_END)
    return before, table, after
