"""ONNX to an engine."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vadexport.backends.cuda import Cuda, out_of_memory
from vadexport.backends.tensorrt.library import Library
from vadexport.backends.tensorrt.log import NO_GPU, new_log
from vadexport.backends.tensorrt.settings import DEFAULT_SETTINGS, TensorRTSettings
from vadexport.contract import INPUT_NAME
from vadexport.errors import BackendError
from vadexport.machine import peak_megabytes
from vadexport.targets import Target

if TYPE_CHECKING:
    import onnx

ENGINE_FILE: Final = "model.engine"
#: The graph that the engine was built from: what parity is proven on where there is no GPU.
GRAPH_FILE: Final = "model.onnx"
#: What it was built with.
SETTINGS_FILE: Final = "settings.json"


def compile_graph(
    library: Library,
    model: Path,
    folder: Path,
    target: Target,
    settings: TensorRTSettings = DEFAULT_SETTINGS,
) -> dict[str, Any]:
    """Write `model.onnx`, as TensorRT reads it, `model.engine`, and `settings.json`.

    Returns:
        What can be told of the engine, as JSON values: its tensors, its layers by kind and type,
        its size, and the seconds and the memory that its build took.

    Raises:
        MissingPackageError: the library is not installed.
        BackendError: the library cannot read or build the graph.
    """
    trt = library.load()
    import onnx

    from vadexport.backends.tensorrt.limits import check_limits, unsupported
    from vadexport.backends.tensorrt.preparing import prepared

    graph = prepared(_read(library, model))
    check_limits(graph, settings.batches[2])
    log = new_log(trt)
    start = time.perf_counter()
    builder = library.start(trt.Builder, log)
    network = builder.create_network(library.network_flags(trt))
    parser = trt.OnnxParser(network, log)
    unknown = unsupported(parser, graph)
    if unknown:
        named = ", ".join(f"{kind} (node {node})" for kind, node in sorted(unknown.items()))
        raise BackendError(
            f"{library.words} has no operator {named}; leave it out of the model, or use another "
            "target"
        )
    if not parser.parse(graph.SerializeToString()):
        raise BackendError(f"{library.words} cannot read the graph: {_parser_errors(parser)}")
    config = builder.create_builder_config()
    library.configure(trt, config, target.device, settings)
    _add_profile(builder, config, network, settings)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError(f"{library.words} cannot build the engine: {_why_not(log)}")
    seconds = time.perf_counter() - start
    library.keep_timings(config, settings)
    (folder / ENGINE_FILE).write_bytes(plan)
    onnx.save(graph, folder / GRAPH_FILE)
    settings_text = json.dumps(settings.to_json(), indent=2) + "\n"
    (folder / SETTINGS_FILE).write_text(settings_text, encoding="utf-8")
    return {
        "library": f"{library.words} {library.version()}",
        "for": _gpus(library, target),
        "build_seconds": round(seconds, 1),
        "peak_megabytes": round(peak_megabytes() or 0),
        "engine_bytes": int(plan.nbytes),
        "inputs": _tensors(network.get_input, network.num_inputs),
        "outputs": _tensors(network.get_output, network.num_outputs),
        "layers": _layers(network),
        "warnings": log.warnings(),
    }


def _why_not(log: Any) -> str:
    """Why there is no engine: where memory was short, the last error speaks of kernels."""
    refused = log.memory_refused()
    return log.last() if refused is None else f"{out_of_memory(refused)} ({log.last()})"


def _gpus(library: Library, target: Target) -> str:
    """Which GPUs the engine is for."""
    if library.ahead_of_time:
        return target.device or "GPUs from Ampere on"
    return Cuda().state().name


def _read(library: Library, model: Path) -> "onnx.ModelProto":
    import onnx

    try:
        return onnx.load(model)
    except Exception:  # noqa: BLE001 - protobuf's own kinds of error, which have no types
        raise BackendError(f"{library.words} cannot read {model.name}: it is no ONNX") from None


def _add_profile(builder: Any, config: Any, network: Any, settings: TensorRTSettings) -> None:
    """A graph with a dynamic batch needs to be told which batches come."""
    image = next(
        tensor
        for tensor in (network.get_input(number) for number in range(network.num_inputs))
        if tensor.name == INPUT_NAME
    )
    shape = tuple(image.shape)
    if shape[0] != -1:
        return
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT_NAME, *[(batch, *shape[1:]) for batch in settings.batches])
    config.add_optimization_profile(profile)


def _parser_errors(parser: Any) -> str:
    errors = [parser.get_error(number) for number in range(parser.num_errors)]
    first = errors[0] if errors else None
    if first is None:
        return "no reason given"
    node = f"node {first.node_name()} ({first.node_operator()}): " if first.node_name() else ""
    lines = [" ".join(line.split()) for line in first.desc().splitlines()]
    told = [line for line in lines if line and not any(each in line for each in NO_GPU)]
    return node + "; ".join(told[:2])


def _tensors(get: Any, count: int) -> list[dict[str, Any]]:
    tensors = [get(number) for number in range(count)]
    return [
        {"name": each.name, "dtype": _type_name(each.dtype), "shape": list(each.shape)}
        for each in tensors
    ]


def _layers(network: Any) -> dict[str, int]:
    """Layers as the parser made them, counted by kind and type; the builder fuses them later."""
    found: dict[str, int] = {}
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        kind = f"{_plain(layer.type)} {_type_name(layer.get_output_type(0))}"
        found[kind] = found.get(kind, 0) + 1
    return dict(sorted(found.items()))


def _type_name(dtype: Any) -> str:
    names = {"half": "float16", "float": "float32", "bf16": "bfloat16"}
    plain = _plain(dtype)
    return names.get(plain, plain)


def _plain(member: Any) -> str:
    return str(member.name).lower()
