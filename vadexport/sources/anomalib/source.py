"""Open a checkpoint of anomalib as a source."""

from dataclasses import replace

import torch

from vadexport.contract import ImageInput
from vadexport.detectors.steps import GraphPreprocessing, Resize
from vadexport.errors import InputError
from vadexport.sources.anomalib.adapting import adapted
from vadexport.sources.anomalib.loading import load_module
from vadexport.sources.anomalib.reference import (
    AnomalibDetector,
    EngineReference,
    PostProcessing,
    facts_of,
)
from vadexport.sources.anomalib.transforms import steps_of
from vadexport.sources.base import Source
from vadexport.sources.cameras import camera_input
from vadexport.sources.checking import check_weights, reason
from vadexport.sources.spec import SourceSpec

_DEFAULT_SIZE = (256, 256)


def open_anomalib(spec: SourceSpec, *, only_reference: bool = False) -> Source:
    """Read a checkpoint of anomalib 2.x.

    Args:
        spec: of its file.
        only_reference: nobody will trace its detector, which then is not adapted to tracing: what
            that takes, as neighbours of all rows of a memory bank, is left out.

    Raises:
        InputError: it is none, or damaged, carries code, is not fitted, or a transform or an option
            is one that graphs cannot take.
        MissingPackageError: anomalib is not installed.
    """
    spec.only("an anomalib checkpoint", "model", "image_size", "camera")
    module = load_module(spec.path, spec.model, trust_pickle=spec.trust_pickle)
    name = type(module).__name__
    _check_fitted(module, name)
    check_weights(module.model)
    steps = steps_of(module.pre_processor.transform if module.pre_processor else None)
    sizes = [step.size for step in steps if isinstance(step, Resize)]
    own = sizes[0] if sizes and not isinstance(sizes[0], int) else _DEFAULT_SIZE
    image_input = camera_input(spec, own)
    detector = AnomalibDetector(
        name,
        module.model if only_reference else adapted(module),
        steps,
        PostProcessing(module.post_processor),
        image_input,
        facts_of(module),
    ).eval()
    if not only_reference:
        _measure(detector, image_input)
    trusted = "its pickle was trusted" if spec.trust_pickle else None
    found = replace(spec, model=name)
    return Source.of_file("anomalib", found, detector, EngineReference(module), trusted)


def _measure(detector: AnomalibDetector, image_input: ImageInput) -> None:
    preprocessing = GraphPreprocessing(detector.steps, image_input)
    shape = (1, image_input.height, image_input.width, image_input.channels)
    image = torch.zeros(shape, dtype=getattr(torch, image_input.dtype))
    try:
        detector.measure_map(preprocessing(image))
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"anomalib's {detector.family} cannot score an image: {reason(error)}"
        ) from error


def _check_fitted(module: object, name: str) -> None:
    """Raises InputError where memory bank or Gaussians are empty: it was saved before its fit."""
    model = getattr(module, "model", None)
    for attribute in ("memory_bank", "gaussian.inv_covariance"):
        found = model
        for part in attribute.split("."):
            found = getattr(found, part, None)
        if isinstance(found, torch.Tensor) and found.numel() == 0:
            what = attribute.replace("_", " ").replace(".", " ")
            raise InputError(
                f"the {what} of this {name} is empty: the checkpoint was saved before the fit was "
                "over; train it to its end"
            )
