"""What the peers of benchmarks/peers.py make of a detector, each by its maker's own means.

    python benchmarks/peer_exports.py KIND SOURCE FOLDER IMAGES [--model Patchcore]

writes one of them, in a process of its own, so that its time and memory can be told.

anomalib exports a batch of any size unless told otherwise; of PatchCore that becomes a graph which
takes two images and no other number. All exports here are of one image, what these models are timed
with and the fastest that anomalib offers.
"""

import argparse
import logging
import os
import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np

#: Files below an export's folder, where anomalib puts them.
OPENVINO_FILE: Final = Path("weights/openvino/model.xml")
ONNX_FILE: Final = Path("weights/onnx/model.onnx")


def main() -> None:
    """Write one export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("images", type=Path, help="normal images, for quantising")
    parser.add_argument("--size", type=int, default=256, help="height and width in pixels")
    parser.add_argument("--model", help="class of anomalib; none for a detector of vadexport's own")
    options = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    KINDS[options.kind](options)


def anomalib_onnx(options: argparse.Namespace) -> None:
    """The ONNX file that anomalib writes."""
    from anomalib_zoo import reload

    size = (options.size, options.size)
    module = reload(options.source, options.model)
    module.to_onnx(options.folder, input_size=size, dynamic_axes=None)


def anomalib_openvino(options: argparse.Namespace) -> None:
    """The OpenVINO IR that anomalib writes, weights uncompressed as by default."""
    from anomalib_zoo import reload

    size = (options.size, options.size)
    module = reload(options.source, options.model)
    module.to_openvino(options.folder, input_size=size, onnx_kwargs={"dynamic_axes": None})


def nncf_whole(options: argparse.Namespace) -> None:
    """NNCF over the whole graph with its defaults, as anomalib's INT8_PTQ calls it."""
    if options.model:
        anomalib_openvino(options)
    else:
        plain(options)
    path = options.folder / (OPENVINO_FILE if options.model else "model.xml")
    import nncf
    import openvino

    from vadexport.images import decode, training_images

    calls = [decode(file.path, 3)[None] for file in training_images(str(options.images))]
    if options.model:
        calls = [as_floats(call) for call in calls]
    quantised = nncf.quantize(openvino.Core().read_model(path), nncf.Dataset(calls))
    openvino.save_model(quantised, options.folder / "quantised.xml", compress_to_fp16=False)


def plain(options: argparse.Namespace) -> None:
    """The graph as vadexport traces it, without any of its passes, for OpenVINO."""
    import onnx

    from vadexport.backends.openvino import compile_graph
    from vadexport.sources import SourceSpec, open_source
    from vadexport.targets import Target
    from vadexport.tracing.graph import simplify, trace

    size = (options.size, options.size) if options.model else None
    detector = open_source(SourceSpec(str(options.source), image_size=size)).detector
    options.folder.mkdir(parents=True, exist_ok=True)
    graph = options.folder / "graph.onnx"
    onnx.save(simplify(trace(detector, detector.image_input)).model, graph)
    compile_graph(graph, options.folder, Target("openvino", "fp32"))


def as_floats(image: np.ndarray) -> np.ndarray:
    """A call [1, H, W, 3] as anomalib's inferencers feed it: float32 [1, 3, H, W] from 0 to 1."""
    floats: np.ndarray = np.ascontiguousarray(image.transpose(0, 3, 1, 2)).astype(np.float32)
    return floats / np.float32(255)


KINDS: Final[dict[str, Any]] = {
    "anomalib-onnx": anomalib_onnx,
    "anomalib-openvino": anomalib_openvino,
    "nncf": nncf_whole,
    "plain": plain,
}

if __name__ == "__main__":
    main()
