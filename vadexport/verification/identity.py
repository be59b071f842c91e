"""What a verification is of, to the byte: its report proves nothing of other files."""

from dataclasses import dataclass
from typing import Self

from vadexport.artifact import Artifact


@dataclass(frozen=True)
class Identity:
    """SHA-256 digests of what was held against what, in hexadecimal, and the artifact's size.

    Attributes:
        manifest: of the artifact's `manifest.json`.
        files: of the artifact's files, by name, which were checked before they ran.
        source: of what the artifact was built from, as its manifest says.
        reference: of the reference: its file, or its weights where it is code.
        images: over the digests of the verified images, whatever their names and order; None where
            none was compared.
        size: of the artifact's files, in bytes.
    """

    manifest: str
    files: dict[str, str]
    source: str | None
    reference: str
    images: str | None
    size: int

    @classmethod
    def of(cls, artifact: Artifact, reference: str, images: str | None) -> Self:
        """Of an artifact that was opened, its reference and images."""
        entries = artifact.manifest.files
        return cls(
            manifest=artifact.sha256,
            files={name: entry.sha256 for name, entry in sorted(entries.items())},
            source=artifact.manifest.source.get("sha256"),
            reference=reference,
            images=images,
            size=sum(entry.size for entry in entries.values()),
        )

    @property
    def megabytes(self) -> float:
        """The size in 10^6 bytes."""
        return self.size / 1e6
