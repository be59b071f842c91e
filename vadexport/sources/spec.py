"""Which trained detector to read, and how."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args

from vadexport.detectors.steps import Step, read_step, step_json
from vadexport.errors import InputError

#: What the camera gives: RGB or gray of 8 bits, or gray of 16.
Camera = Literal["rgb", "gray", "gray16"]


@dataclass(frozen=True)
class SourceSpec:
    """A source and what it leaves open; None is the source's own.

    Attributes:
        location: path of a file, or `python:package.module:factory`.
        model: class of an anomalib checkpoint that does not name its own, such as `Patchcore`.
        image_size: height and width of the camera's images.
        camera: its colours and bits.
        steps: preprocessing of a model that brings none.
        outputs: which of a model's outputs are score and map, as `score=NAME,map=NAME`.
        threshold: raw score above which an image is anomalous, for a model that brings none.
        pixel_threshold: map value above which a pixel is, likewise.
        trust_pickle: unpickle what may run code.
    """

    location: str
    model: str | None = None
    image_size: tuple[int, int] | None = None
    camera: Camera | None = None
    steps: tuple[Step, ...] | None = None
    outputs: str | None = None
    threshold: float | None = None
    pixel_threshold: float | None = None
    trust_pickle: bool = False

    @classmethod
    def of(cls, value: Self | Path | str) -> Self:
        """A specification that leaves all open, of a path."""
        return value if isinstance(value, cls) else cls(str(value))

    @property
    def path(self) -> Path:
        """Of the file."""
        return Path(self.location)

    def to_json(self) -> dict[str, Any]:
        """What manifests hold: all that is set but where the source lies and whom one trusts."""
        found: dict[str, Any] = {}
        for name in _STORED:
            value = getattr(self, name)
            if name == "steps" and value is not None:
                found[name] = [step_json(step) for step in value]
            elif value is not None:
                found[name] = list(value) if isinstance(value, tuple) else value
        return found

    def completed(self, stored: dict[str, Any]) -> Self:
        """This specification, what it leaves open taken from what `to_json` gave.

        Raises:
            InputError: `stored` is something else.
        """
        unknown = sorted(set(stored) - set(_STORED))
        if unknown:
            raise InputError(f"the artifact's source has an unknown option {unknown[0]!r}")
        try:
            read = {name: _read(name, value) for name, value in stored.items()}
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the artifact's source options are damaged: {error}") from None
        return replace(
            self, **{name: value for name, value in read.items() if getattr(self, name) is None}
        )

    def only(self, kind: str, *allowed: str) -> None:
        """Refuse options that sources of `kind` do not take.

        Raises:
            InputError: one is given that is not `allowed`.
        """
        for field in fields(self):
            given = getattr(self, field.name) not in (None, False)
            if given and field.name not in ("location", "trust_pickle", *allowed):
                raise InputError(
                    f"{self.location} is {kind}, which takes no "
                    f"--{_OPTIONS.get(field.name, field.name.replace('_', '-'))}"
                )


_STORED: Final = (
    *("model", "image_size", "camera", "steps", "outputs"),
    *("threshold", "pixel_threshold"),
)
_OPTIONS: Final = {"steps": "resize, --crop, --mean, --std or --bgr"}


def _read(name: str, value: Any) -> Any:
    """One stored option, of the type that the field has."""
    match name:
        case "image_size":
            height, width = value
            return int(height), int(width)
        case "steps":
            return tuple(read_step(each) for each in value)
        case "threshold" | "pixel_threshold":
            return float(value)
        case "camera":
            if value not in get_args(Camera):
                raise ValueError(f"no camera is {value!r}")
            return value
        case _:
            if type(value) is not str:
                raise TypeError(f"{name} is no text")
            return value
