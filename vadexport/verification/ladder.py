"""The parity ladder: every step from the detector to the artifact, held against the reference."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from vadexport.backends.base import RunnerOpener, outputs_of
from vadexport.backends.child import Child
from vadexport.contract import RAW_SCORE, Call, ImageArray, ImageInput, Outputs
from vadexport.errors import InputError
from vadexport.thresholds import Thresholds
from vadexport.verification.further_checks import preprocessing_check, repeat_check
from vadexport.verification.limits import Check, Limits, parity_checks
from vadexport.verification.parity import NO_FIGURES, Infer, ParityFigures, compare_images, figures
from vadexport.verification.tensors import largest_difference, preprocessed_by

if TYPE_CHECKING:
    from vadexport.backends.pytorch import PyTorchRunner

#: Images whose preprocessing is compared: it is the same for all.
_PREPARED: Final = 4
#: Images a call of graphs that take any number: all at once would take gigabytes.
_OPEN_BATCH: Final = 4


@dataclass(frozen=True)
class Rung:
    """One step and how far it is from the reference.

    Attributes:
        name: of the step.
        figures: against the reference, on the check images.
        checks: against the limits of the step's precision.
        preprocessing: largest difference of the tensor after preprocessing from the reference's, as
            a fraction of its largest value; None where it was not compared.
    """

    name: str
    figures: ParityFigures
    checks: tuple[Check, ...]
    preprocessing: float | None = None

    @property
    def held(self) -> bool:
        """Whether all checks held."""
        return all(check.held for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """What the manifest holds of it; six significant digits."""
        found = {
            key: float(f"{value:.6g}") if isinstance(value, float) else value
            for key, value in {**asdict(self.figures), "preprocessing": self.preprocessing}.items()
        }
        return {"rung": self.name, "held": self.held, **found}


class Ladder:
    """Check images, and the reference's outputs on them: it is asked here, and never again.

    Where the graph takes any number of images, it is called with a few at a time.

    Args:
        reference: the reference's inference.
        images: check images, `[n, H, W, C]`.
        image_input: the graph's input.
        thresholds: the reference's; None where it makes no decisions.
        prepare: the reference's preprocessing, of the same calls; None leaves it out.
        tolerant: a step without any finite score is a rung that falls short, and no error.

    Raises:
        InputError: the reference gives an image a score that is not finite.
    """

    def __init__(
        self,
        reference: Infer,
        images: ImageArray,
        image_input: ImageInput,
        thresholds: Thresholds | None,
        prepare: Callable[[Call], NDArray[np.float32]] | None = None,
        *,
        tolerant: bool = False,
    ) -> None:
        self._images = images
        self._image_input = replace(image_input, batch=image_input.batch or _OPEN_BATCH)
        self._thresholds = thresholds
        self._answers: dict[bytes, Outputs] = {}
        self._tolerant = tolerant
        scores = []
        for call, count in self._image_input.batches(images):
            key = call.tobytes()
            if key not in self._answers:
                self._answers[key] = reference(call)
            scores.append(self._answers[key][RAW_SCORE][:count])
        self.reference_scores = np.concatenate(scores).astype(np.float64)
        if not np.isfinite(self.reference_scores).all():
            raise InputError(
                "the detector itself gives scores that are not finite: its weights or its memory "
                "bank are damaged"
            )
        self._few, count = next(self._image_input.batches(images[:_PREPARED]))
        self._prepared = None if prepare is None else prepare(self._few)[:count]

    def climb(
        self,
        name: str,
        what: str,
        open_runner: RunnerOpener,
        unit: float,
        limits: Limits,
        *,
        repeated: bool = False,
    ) -> Rung:
        """Compare one step with the reference.

        Args:
            name: of the rung.
            what: runs it, for errors.
            open_runner: opens it in a child process.
            unit: of drift.
            limits: that judge it.
            repeated: run it twice more, and check that it says the same again.

        Raises:
            BackendError: it crashed or timed out.
            CheckError: all its scores are NaN or infinite, and the ladder is not tolerant.
        """
        with Child(what) as child:
            child.open(open_runner)
            infer = child_inference(child)
            named = [(str(n), None, image) for n, image in enumerate(self._images)]
            records = compare_images(
                self._remembered, {name: infer}, named, self._image_input, self._thresholds
            )
            if self._tolerant and not any(record.finite for record in records[name]):
                count = len(named)
                found, limits = replace(NO_FIGURES, images=count, not_finite=count), Limits()
            else:
                found = figures(records[name], unit)
            checks = parity_checks(found, limits)
            if repeated:
                again = compare_images(
                    infer, {name: infer}, named, self._image_input, self._thresholds
                )[name]
                finite = any(record.finite for record in again)
                checks.append(repeat_check(figures(again, unit) if finite else None))
        return Rung(name, found, tuple(checks))

    def against(self, reference: Infer) -> "Ladder | None":
        """The same images, held against something else in place of the reference.

        It may contradict itself, which is not asked; images that it gives no finite score are left
        out.

        Args:
            reference: its inference.

        Returns:
            None where no image has a finite score.
        """
        calls = self._image_input.batches(self._images)
        scores = [reference(call)[RAW_SCORE][:count] for call, count in calls]
        finite = np.isfinite(np.concatenate(scores))
        if not finite.any():
            return None
        images = self._images[finite]
        return Ladder(reference, images, self._image_input, None, tolerant=self._tolerant)

    def check_preprocessing(self, rung: Rung, graph: Path) -> Rung:
        """Compare, for a rung, the tensor that its graph's network is given, on a few images.

        Args:
            rung: of the graph.
            graph: its ONNX file.
        """
        expected = self._prepared
        if expected is None:
            return rung
        with Child(f"preprocessing ({rung.name})") as child:
            found = child.run(preprocessed_by, graph, self._few)
        if found is None:
            return rung
        found = found[: len(expected)]
        checks = (preprocessing_check(expected, found), *rung.checks)
        return replace(rung, checks=checks, preprocessing=largest_difference(expected, found))

    def _remembered(self, call: Call) -> Outputs:
        return self._answers[call.tobytes()]


def child_inference(child: Child) -> Callable[[Call], Outputs]:
    """Inference by the runner that `child` holds."""
    return lambda image: child.apply(outputs_of, image)


def child_preparation(child: Child) -> Callable[[Call], NDArray[np.float32]]:
    """Preprocessing by the reference that `child` holds."""
    return lambda image: child.apply(_prepare, image)


def _prepare(runner: "PyTorchRunner", image: Call) -> NDArray[np.float32]:
    return runner.prepared(image)
