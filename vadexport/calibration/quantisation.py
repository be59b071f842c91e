"""Symmetric INT8 of a graph's network; its score head stays in float."""

import importlib.util
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx

from vadexport.contract import INPUT_NAME, Call, ImageInput
from vadexport.errors import BackendError, InputError, MissingPackageError
from vadexport.images import ImageFile, load_images
from vadexport.passes import apply_passes
from vadexport.passes.signed_activations import SignedActivations


def require_nncf() -> None:
    """Find out early whether NNCF is there; raises MissingPackageError."""
    if importlib.util.find_spec("nncf") is None:
        raise MissingPackageError("nncf", "int8")


def quantise(
    model: Path,
    destination: Path,
    network_nodes: frozenset[str],
    images: Sequence[ImageFile],
    image_input: ImageInput,
    progress: Callable[[int, int], None],
) -> int:
    """Write a Q/DQ form of the ONNX file `model`, made by NNCF. To be run in a child process.

    Weights are symmetric per channel, activations symmetric per tensor, all of them int8: one
    graph means the same to every target (`SignedActivations`). Ranges are those that the images
    reach: NNCF's default, the mean of the images' ranges, clips what defects excite. Only
    `network_nodes` are quantised. Biases are left as they are; NNCF's correction of them was
    measured to move scores further (benchmarks/int8_ranges.py).

    Args:
        model: ONNX file.
        destination: of the quantised ONNX file.
        network_nodes: names of the nodes that may be quantised.
        images: calibration images.
        image_input: the graph's input.
        progress: told how many images were seen, of how many.

    Returns:
        Number of layers whose weights are now INT8.

    Raises:
        MissingPackageError: NNCF is not installed.
        InputError: there is no image, or one cannot be read or has the wrong size.
        BackendError: NNCF found nothing to quantise.
    """
    try:
        import nncf
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet
    except ImportError:
        raise MissingPackageError("nncf", "int8") from None
    if not images:
        raise InputError("the calibration set holds no normal image")
    nncf.set_log_level(logging.ERROR)
    graph = onnx.load(model)

    def feed(start: int) -> dict[str, Call]:
        """One call of the graph: image `start` and those after it, round to the first again."""
        call = [images[(start + offset) % len(images)] for offset in range(image_input.batch or 1)]
        arrays = [array for _, array in load_images(call, image_input, skip_unreadable=False)]
        progress(start + 1, len(images))
        filled, _ = next(image_input.batches(np.stack(arrays)))
        return {INPUT_NAME: filled}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = nncf.quantize(
            graph,
            nncf.Dataset(range(len(images)), feed),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(
                names=[node.name for node in graph.graph.node if node.name not in network_nodes]
            ),
            advanced_parameters=AdvancedQuantizationParameters(
                disable_bias_correction=True,
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
            ),
        )
    layers = _quantised_layers(quantised)
    if layers == 0:
        raise BackendError("there is nothing to quantise in the network of this detector")
    signed, _ = apply_passes(quantised, (SignedActivations(),))
    onnx.save(signed, destination)
    return layers


def _quantised_layers(model: onnx.ModelProto) -> int:
    constants = {tensor.name for tensor in model.graph.initializer}
    weights = {
        node.output[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]
    return sum(any(name in weights for name in layer.input[1:2]) for layer in layers)
