"""Artifacts in use."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vadexport import contract
from vadexport.artifact import Manifest, find_artifacts, open_artifact
from vadexport.backends.base import Execution, Runner, available_threads
from vadexport.backends.registry import opener
from vadexport.contract import ImageArray, ImageInput
from vadexport.errors import BackendError, CheckError, InputError, VadexportError


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class Prediction:
    """What the detector says of one image.

    Attributes:
        pred_score: normalised to [0, 1], threshold at 0.5; the raw score where the detector does
            not normalise.
        raw_score: before normalisation.
        label: True where the image is anomalous; None where the detector makes no decisions.
        anomaly_map: float32 [h, w], in the units that the trained detector gives; None where it
            gives no map.
        mask: bool [h, w], True where the map is above the pixel threshold; None likewise.
    """

    pred_score: float
    raw_score: float
    label: bool | None
    anomaly_map: NDArray[np.float32] | None
    mask: NDArray[np.bool_] | None


class LoadedDetector:
    """An artifact, ready to score images; calls from several threads wait for each other."""

    def __init__(self, manifest: Manifest, runner: Runner) -> None:
        self.manifest = manifest
        self._runner = runner
        self._lock = Lock()

    @property
    def image_input(self) -> ImageInput:
        """The images that it takes."""
        return self.manifest.image_input

    @property
    def execution(self) -> Execution:
        """How it runs: backend, precision, device, threads."""
        return self._runner.execution

    def predict(self, image: NDArray[Any] | str | PathLike[str]) -> Prediction:
        """Score one image.

        Args:
            image: `[H, W, C]` (gray also `[H, W]`) of the input's dtype, or the path of an image
                file, which pydicom must be installed for if it is DICOM.

        Raises:
            InputError: not an image, or of another size, dtype or number of channels.
            CheckError: the score is not finite.
            BackendError: the backend failed.
        """
        return self.predict_batch([image])[0]

    def predict_batch(
        self, images: Sequence[NDArray[Any] | str | PathLike[str]]
    ) -> list[Prediction]:
        """Score images; as `predict`, in calls of the artifact's batch size."""
        if not images:
            return []
        stacked = np.concatenate([self._array(image) for image in images])
        if len(stacked) != len(images):
            raise InputError("give one image at a time, or a list of single images")
        with self._lock, _named(self.manifest):
            calls = [(self._runner.infer(c), n) for c, n in self.image_input.batches(stacked)]
        outputs = contract.join_outputs(calls)
        raw = outputs[contract.RAW_SCORE]
        if not np.isfinite(raw).all():
            raise CheckError("the detector gave a score that is not finite")
        labels, maps, masks = (
            outputs.get(name)
            for name in (contract.PRED_LABEL, contract.ANOMALY_MAP, contract.PRED_MASK)
        )
        return [
            Prediction(
                pred_score=float(outputs[contract.PRED_SCORE][number]),
                raw_score=float(raw[number]),
                label=None if labels is None else bool(labels[number]),
                anomaly_map=None if maps is None else maps[number, 0],
                mask=None if masks is None else masks[number, 0],
            )
            for number in range(len(images))
        ]

    def _array(self, image: NDArray[Any] | str | PathLike[str]) -> ImageArray:
        if isinstance(image, np.ndarray):
            return self.image_input.check(image)
        from vadexport.images import decode

        path = Path(image)
        try:
            return self.image_input.check(decode(path, self.image_input.channels))
        except InputError as error:
            text = str(error)
            raise InputError(text if str(path) in text else f"{path}: {text}") from None


def load(folder: str | PathLike[str], *, threads: int | None = None) -> LoadedDetector:
    """Load the artifact in `folder`, after checking that its files are the ones it was built with.

    Args:
        folder: an artifact, or a build folder that holds a single one.
        threads: that one call may use; default all processors.

    Raises:
        InputError: no artifact, several, or a file was changed.
        MissingPackageError: its backend is not installed.
        BackendError: its backend cannot load it.
    """
    found = find_artifacts(Path(folder))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise InputError(f"{folder} holds several artifacts, name one of them: {names}")
    artifact = open_artifact(found[0])
    open_runner = opener(artifact.manifest.target, found[0], threads or available_threads())
    with _named(artifact.manifest):
        return LoadedDetector(artifact.manifest, open_runner())


@contextmanager
def _named(manifest: Manifest) -> Iterator[None]:
    """Give what a backend raises the name of the target."""
    try:
        yield
    except VadexportError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise BackendError(f"{manifest.target} failed: {lines[0]}") from error
