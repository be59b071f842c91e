"""What a source offers."""

from dataclasses import dataclass
from pathlib import Path

from vadexport.detectors.base import Detector


@dataclass(frozen=True)
class Source:
    """A trained detector and where it came from.

    Attributes:
        kind: of source, such as `native`.
        path: of its file.
        sha256: of its file.
        detector: the reference, in evaluation mode.
    """

    kind: str
    path: Path
    sha256: str
    detector: Detector

    def to_json(self) -> dict[str, str]:
        """What manifests say of it: no path, so that they do not depend on the folder."""
        return {"kind": self.kind, "family": self.detector.family, "sha256": self.sha256}
