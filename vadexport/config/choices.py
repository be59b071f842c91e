"""What flags and files say: how to read a source, which becomes a specification, and limits.

Nothing here imports PyTorch at once, which the specification's steps do: `--help` must not wait.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Final, Self, cast

from vadexport.errors import InputError

if TYPE_CHECKING:
    from vadexport.detectors.steps import Interpolation, Step
    from vadexport.sources.spec import Camera, SourceSpec

CAMERAS: Final = ("rgb", "gray", "gray16")
INTERPOLATIONS: Final = ("nearest", "nearest-exact", "bilinear", "bicubic")
#: What a location starts with that names a function instead of a file.
FACTORY: Final = "python:"

#: What means nothing alone, and what it needs.
_NEEDS: Final = {"interpolation": "resize", "antialias": "resize", "mean": "std", "std": "mean"}


def flag_of(name: str) -> str:
    """How the command line spells a choice."""
    return "--no-antialias" if name == "antialias" else f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class SourceChoices:
    """A source, and each choice of how to read it; None is not made.

    Attributes:
        location: path of a file, or `python:package.module:factory`.
        model: see `SourceSpec`, as for all that are not named here.
        image_size: height and width of the camera's images.
        camera: one of `CAMERAS`.
        resize: height and width; one number is the shorter side.
        interpolation: of the resize, one of `INTERPOLATIONS`.
        antialias: average over the pixels that a smaller image covers.
        crop: height and width of the middle.
        mean: of each channel, from 0 to 1.
        std: of each channel.
        bgr: whether the network takes blue first.
        outputs: as `score=NAME,map=NAME`.
        threshold: raw score above which an image is anomalous.
        pixel_threshold: map value above which a pixel is.
        trust_pickle: unpickle what may run code.
    """

    location: str | None = None
    model: str | None = None
    image_size: tuple[int, int] | None = None
    camera: str | None = None
    resize: tuple[int, int] | int | None = None
    interpolation: str | None = None
    antialias: bool | None = None
    crop: tuple[int, int] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    bgr: bool | None = None
    outputs: str | None = None
    threshold: float | None = None
    pixel_threshold: float | None = None
    trust_pickle: bool = False

    def at(self, location: str | None) -> Self:
        """The same choices for a source; None leaves open which."""
        return replace(self, location=location)

    def over(self, other: Self) -> Self:
        """These choices, and those of `other` that are not made here."""
        made = {each.name: getattr(self, each.name) for each in fields(self)}
        made["trust_pickle"] = self.trust_pickle or other.trust_pickle
        return replace(other, **{name: value for name, value in made.items() if value is not None})

    def made(self) -> list[str]:
        """Names of the choices of how to read it that are made."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values |= {"location": None, "trust_pickle": self.trust_pickle or None}
        return [name for name, value in values.items() if value is not None]

    def lacking(self) -> tuple[str, str] | None:
        """A choice that means nothing without another that is not made, and that one."""
        for name, needed in _NEEDS.items():
            if getattr(self, name) is not None and getattr(self, needed) is None:
                return name, needed
        return None

    def spec(self) -> "SourceSpec":
        """The specification of the source.

        Raises:
            InputError: no source is named, or a choice needs another.
        """
        from vadexport.sources.spec import SourceSpec

        if self.location is None:
            raise InputError("name a source: the file of a trained detector")
        lacking = self.lacking()
        if lacking is not None:
            flag, needed = map(flag_of, lacking)
            raise InputError(f"{flag} means nothing without {needed}: give that as well")
        return SourceSpec(
            location=self.location,
            model=self.model,
            image_size=self.image_size,
            camera=cast("Camera | None", self.camera),
            steps=self._steps() or None,
            outputs=self.outputs,
            threshold=self.threshold,
            pixel_threshold=self.pixel_threshold,
            trust_pickle=self.trust_pickle,
        )

    def _steps(self) -> "tuple[Step, ...]":
        from vadexport.detectors.steps import CenterCrop, Normalise, Resize, SwapChannels

        steps: list[Step] = []
        if self.resize is not None:
            interpolation = cast("Interpolation", self.interpolation or "bilinear")
            smooth = interpolation in ("bilinear", "bicubic")  # the others average nothing
            antialias = smooth and self.antialias is not False
            steps.append(Resize(self.resize, interpolation, antialias))
        if self.crop is not None:
            steps.append(CenterCrop(self.crop))
        if self.bgr:
            steps.append(SwapChannels())
        if self.mean is not None and self.std is not None:
            steps.append(Normalise(self.mean, self.std))
        return tuple(steps)


@dataclass(frozen=True)
class LimitChoices:
    """Limits of a verification that are given, by their name in `Limits`.

    Attributes:
        everywhere: for all targets.
        of_precision: for the targets of a precision, whatever holds for all.
    """

    everywhere: Mapping[str, float] = field(default_factory=dict)
    of_precision: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def over(self, other: Self) -> Self:
        """These limits, and those of `other` that none given here is about."""
        mine, theirs = self.of_precision, other.of_precision
        left = {
            precision: {name: limit for name, limit in table.items() if name not in self.everywhere}
            for precision, table in theirs.items()
        }
        return replace(
            self,
            everywhere={**other.everywhere, **self.everywhere},
            of_precision={
                precision: {**left.get(precision, {}), **mine.get(precision, {})}
                for precision in {**theirs, **mine}
            },
        )
