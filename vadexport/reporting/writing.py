"""Write the reports of a verification into a folder."""

from pathlib import Path
from typing import Final

from vadexport.errors import InputError, MissingPackageError
from vadexport.files import written_whole
from vadexport.reporting.html_report import html_report
from vadexport.reporting.json_report import as_text, latency_json, parity_json
from vadexport.reporting.junit import junit_xml
from vadexport.reporting.summary import summary_markdown
from vadexport.verification.result import Verification

PARITY_FILE: Final = "parity.json"
LATENCY_FILE: Final = "latency.json"
PAGE_FILE: Final = "index.html"
JUNIT_FILE: Final = "junit.xml"
SUMMARY_FILE: Final = "summary.md"


def write_reports(v: Verification, folder: Path) -> list[str]:
    """Write the JSON files, `junit.xml`, `summary.md` and `index.html`, each whole or not at all.

    A file that this verification has nothing for is removed: it would be of an older one. Without
    jinja2 that is `index.html`.

    Returns:
        Warnings: what was not written.

    Raises:
        InputError: the folder cannot be made or written to.
    """
    warnings = []
    latency = latency_json(v)
    texts = {
        PARITY_FILE: as_text(parity_json(v)),
        LATENCY_FILE: None if latency is None else as_text(latency),
        JUNIT_FILE: junit_xml(v),
        SUMMARY_FILE: summary_markdown(v),
        PAGE_FILE: None,
    }
    try:
        texts[PAGE_FILE] = html_report(v)
    except MissingPackageError as error:
        warnings.append(f"{PAGE_FILE} is not written: {error}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            _write(folder / name, text)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot write the report {folder}: {reason}") from error
    return warnings


def front_page(folder: Path) -> Path:
    """What a reader opens of a written report: its page, or its summary where there is none."""
    page = folder / PAGE_FILE
    return page if page.exists() else folder / SUMMARY_FILE


def remove_reports(folder: Path) -> None:
    """Remove what `write_reports` wrote for an earlier verification; other files stay.

    Raises:
        InputError: a file cannot be removed.
    """
    try:
        for name in (PARITY_FILE, LATENCY_FILE, JUNIT_FILE, SUMMARY_FILE, PAGE_FILE):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot remove the old report in {folder}: {error.strerror}") from None


def _write(path: Path, text: str | None) -> None:
    if text is None:
        path.unlink(missing_ok=True)
        return
    with written_whole(path) as unfinished:
        # Names of files may hold bytes that are no text; as escapes they are valid JSON, too.
        unfinished.write_bytes(text.encode(errors="backslashreplace"))
