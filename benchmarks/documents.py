"""Tables of benchmarks in documents, each between two markers."""

from pathlib import Path


def replace_table(document: Path, table: str, name: str = "table") -> None:
    """Put `table` where the document's table of that name is."""
    before, _, after = _parts(document, name)
    text = f"{before}{_marker(name, 'begin')}{table}{_marker(name, 'end')}{after}"
    document.write_text(text, encoding="utf-8")


def table_rows(document: Path, name: str = "table") -> dict[str, str]:
    """Lines of the document's table of that name, below its head, by their first cells."""
    _, table, _ = _parts(document, name)
    return {line.split("|")[1].strip(): line for line in table.splitlines()[2:]}


def _parts(document: Path, name: str) -> tuple[str, str, str]:
    """What stands before the table, the table, and what stands behind it."""
    before, rest = document.read_text(encoding="utf-8").split(_marker(name, "begin"))
    table, after = rest.split(_marker(name, "end"))
    return before, table, after


def _marker(name: str, end: str) -> str:
    return f"<!-- {name}: {end} -->\n"
