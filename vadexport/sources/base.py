"""What a source offers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vadexport.backends.base import Runner
from vadexport.detectors.exportable import Exportable


@dataclass(frozen=True)
class Source:
    """A trained detector and where it came from.

    Attributes:
        kind: of source, such as `native`.
        name: for readers: a file's name, or the specification.
        sha256: of its file, or of its weights where it is code.
        size: of its file in bytes; None where it is code.
        detector: in the form that graphs are made from.
        open_reference: open the untouched detector, with so many threads.
        options: that it was read with, as JSON values; they read it alike again.
        runs_code: what code of the source's own has run, in words; None for none.
    """

    kind: str
    name: str
    sha256: str
    size: int | None
    detector: Exportable
    open_reference: Callable[[int], Runner]
    options: dict[str, Any] = field(default_factory=dict)
    runs_code: str | None = None

    def to_json(self) -> dict[str, str]:
        """What manifests say of it: no path, so that they do not depend on the folder."""
        return {"kind": self.kind, "family": self.detector.family, "sha256": self.sha256}
