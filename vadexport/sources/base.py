"""What a source offers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from torch import nn

from vadexport.artifact import file_digest
from vadexport.backends.base import Runner
from vadexport.backends.pytorch import PyTorchRunner
from vadexport.detectors.exportable import Exportable
from vadexport.sources.spec import SourceSpec


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

    @classmethod
    def of_file(
        cls,
        kind: str,
        spec: SourceSpec,
        detector: Exportable,
        reference: nn.Module,
        runs_code: str | None = None,
    ) -> Self:
        """One of the file that `spec` names, whose reference is a module of PyTorch."""
        path = spec.path
        return cls(
            kind=kind,
            name=path.name,
            sha256=file_digest(path),
            size=path.stat().st_size,
            detector=detector,
            open_reference=lambda threads: PyTorchRunner(reference, threads),
            options=spec.to_json(),
            runs_code=runs_code,
        )

    def to_json(self) -> dict[str, str]:
        """What manifests say of it: no path, so that they do not depend on the folder."""
        return {"kind": self.kind, "family": self.detector.family, "sha256": self.sha256}
