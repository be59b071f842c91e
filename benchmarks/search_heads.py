"""Searches of a memory bank alone, float32 and INT8, in OpenVINO and ONNX Runtime.

The searched rows and the queries are of one low-dimensional cloud with noise, as patches are. The
graph is PatchCore's as it is traced; the passes rewrite it, with tiles of several sizes. Each is
called once a round, in random order, right after an untimed call of its own.

    python benchmarks/search_heads.py [--sizes 1444x1444x152,784x10240x384] [--rounds 9]
        [--document docs/passes.md]
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
from documents import replace_table
from onnx import TensorProto, helper, numpy_helper
from openvino_steps import openvino_steps

from vadexport.backends.base import available_threads
from vadexport.backends.onnxruntime import open_session
from vadexport.machine import processor_name, tool_versions
from vadexport.passes import search_plan, search_tiles
from vadexport.passes.base import apply_passes
from vadexport.passes.nearest_neighbours import CentredBank, NearestNeighbours
from vadexport.passes.quantised_search import QuantisedSearch, search_inputs
from vadexport.passes.search_plan import SearchPlan, plan_search
from vadexport.passes.search_tiles import SearchTiles
from vadexport.passes.worst_neighbour import WorstNeighbour
from vadexport.telemetry import forbid_telemetry

SIZES = "1444x1444x152,784x10240x384,1024x16384x1536"
TILES = (256, 512, 1024)
SHORTLISTS = (1, 2, 4, 8)
SHARES, FEW_CANDIDATES = (1 / 12, 1 / 4), 4
Call = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    """Print a table for all sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default=SIZES, help="queries x rows x values, by commas")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--document", type=Path, help="whose second table is replaced")
    options = parser.parse_args()
    forbid_telemetry()
    versions = ", ".join(f"{name} {version}" for name, version in tool_versions().items())
    lines = [
        f"{processor_name()}, {available_threads()} threads; {versions}",
        "",
        "| queries × rows × values | search | OpenVINO, ms | ONNX Runtime, ms | largest error |",
        "|---|---|---|---|---|",
    ]
    for size in options.sizes.split(","):
        queries, rows, width = map(int, size.split("x"))
        lines += measured(queries, rows, width, options.rounds)
        print("\n".join(lines), flush=True)
    if options.document is not None:
        replace_table(options.document, "\n".join([*lines, ""]), "heads")


def measured(count: int, rows: int, width: int, rounds: int) -> list[str]:
    """Rows of the table for one size."""
    bank, queries = cloud(rows, count, width)
    graphs = variants(bank, queries)
    expected = true_distances(bank, queries)
    calls: dict[tuple[str, str], Call] = {}
    for name, graph in graphs.items():
        calls[name, "openvino"] = openvino_call(graph)
        if "candidate" not in name or "1 " in name or "directions" in name:
            calls[name, "onnxruntime"] = onnxruntime_call(graph)
    errors = {key: np.abs(call(queries) - expected).max() for key, call in calls.items()}
    relative = {key: float(error / np.median(expected)) for key, error in errors.items()}
    samples: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key in random.sample(list(calls), len(calls)):
            calls[key](queries)
            started = time.perf_counter()
            calls[key](queries)
            samples[key].append((time.perf_counter() - started) * 1e3)
    lines = []
    for name in graphs:
        shown = [
            f"{statistics.median(samples[name, each]):.1f}" if (name, each) in samples else "–"
            for each in ("openvino", "onnxruntime")
        ]
        error = relative[name, "openvino"]
        lines.append(
            f"| {count:,} × {rows:,} × {width:,} | {name} | {' | '.join(shown)} | {error:.0e} |"
        )
    return lines


def cloud(rows: int, queries: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A bank [M, D] and queries [1, N, D]."""
    rng = np.random.default_rng(0)
    axes = rng.normal(size=(24, width)).astype(np.float32) / 5

    def drawn(count: int) -> np.ndarray:
        noise = rng.normal(size=(count, width)).astype(np.float32)
        found = rng.normal(size=(count, 24)).astype(np.float32) @ axes + 0.3 * noise + 0.5
        return np.maximum(found, 0).astype(np.float32)  # as behind a ReLU

    return drawn(rows), drawn(queries)[None]


def true_distances(bank: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Distances [1, N] to the nearest rows, in float64 around the bank's mean."""
    rows = bank.astype(np.float64) - bank.mean(axis=0)
    found = []
    for part in np.array_split(queries[0].astype(np.float64) - bank.mean(axis=0), 8):
        squares = np.square(part).sum(axis=1)[:, None] + np.square(rows).sum(axis=1)
        found.append(np.sqrt((squares - 2 * part @ rows.T).min(axis=1)))
    return np.concatenate(found)[None]


def variants(bank: np.ndarray, queries: np.ndarray) -> dict[str, onnx.ModelProto]:
    """Graphs by what was done to them."""
    plain, indexed = search(bank, queries.shape[1]), search(bank, queries.shape[1], worst=True)
    passes = NearestNeighbours(), WorstNeighbour(), SearchTiles()
    found = {
        "as traced": plain,
        "`nearest-neighbours`": apply_passes(plain, passes[:1])[0],
    }
    for tile in TILES:
        with mock.patch.object(search_tiles, "TILE", tile):
            found[f"and tiles of {tile}"] = apply_passes(plain, passes)[0]
    found["as traced, with the worst patch's row"] = indexed
    found["with it, all passes"] = apply_passes(indexed, passes)[0]
    ((name, _),) = search_inputs(plain).items()
    every = [((), shortlist) for shortlist in SHORTLISTS]
    for shares, shortlist in [*every, *(((share,), FEW_CANDIDATES) for share in SHARES)]:
        plan = planned(bank, queries, shortlist, shares)
        if shares and plan.directions is None:
            continue  # too narrow a bank for so few
        where = "" if plan.directions is None else f" in {plan.directions.shape[1]} directions"
        words = f"INT8{where}, {shortlist} candidate{'s' if shortlist > 1 else ''} of blocks of 512"
        found[words] = apply_passes(plain, (QuantisedSearch({name: plan}),))[0]
    return found


def planned(
    bank: np.ndarray, queries: np.ndarray, shortlist: int, shares: tuple[float, ...]
) -> SearchPlan:
    """A plan with just this shortlist, in these shares of the directions."""
    with (
        mock.patch.object(search_plan, "_SHARES", shares),
        mock.patch.object(search_plan, "_SHORTLISTS", (shortlist,)),
        mock.patch.object(search_plan, "_BLOCKS", (512,)),
        mock.patch.object(search_plan, "_MOST_QUERIES", 16),
    ):
        centred = CentredBank.of(bank.astype(np.float64))
        plan = plan_search(centred, queries[0], np.inf, openvino_steps())
    assert plan is not None
    return plan


def search(bank: np.ndarray, count: int, *, worst: bool = False) -> onnx.ModelProto:
    """PatchCore's search, and the row that is nearest to the worst patch."""
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("MatMul", ["x", "doubled"], "product", {}),
        ("Sub", ["norms", "product"], "partial", {}),
        ("ReduceMin", ["partial", "last"], "smallest", {"keepdims": 0}),
        ("Mul", ["x", "x"], "squares", {}),
        ("ReduceSum", ["squares", "last"], "own", {"keepdims": 0}),
        ("Add", ["smallest", "own"], "squared", {}),
        ("Clip", ["squared", "zero"], "clipped", {}),
        ("Sqrt", ["clipped"], "y", {}),
    ]
    if worst:
        steps += [
            ("ArgMin", ["partial"], "index", {"axis": 2, "keepdims": 0}),
            ("ArgMax", ["y"], "far", {"axis": 1, "keepdims": 1}),
            ("GatherElements", ["index", "far"], "row", {"axis": 1}),
        ]
    constants = {
        "doubled": np.ascontiguousarray(2 * bank.T),
        "norms": np.square(bank).sum(axis=1),
        "last": np.array([2]),
        "zero": np.float32(0),
    }
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, count])]
    if worst:
        outputs.append(helper.make_tensor_value_info("row", TensorProto.INT64, [1, 1]))
    graph = helper.make_graph(
        [helper.make_node(op, ins, [out], out, **given) for op, ins, out, given in steps],
        "search",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, count, bank.shape[1]])],
        outputs,
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def openvino_call(graph: onnx.ModelProto) -> Call:
    """The first output of the graph in OpenVINO, as vadexport runs it."""
    import openvino

    core = openvino.Core()
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": available_threads(),
    }
    compiled = core.compile_model(core.read_model(graph.SerializeToString()), "CPU", options)
    request = compiled.create_infer_request()
    return lambda x: request.infer({0: x}, share_inputs=True)["y"].copy()


def onnxruntime_call(graph: onnx.ModelProto) -> Call:
    """The first output of the graph in ONNX Runtime, as vadexport runs it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = open_session(graph.SerializeToString(), options, ["CPUExecutionProvider"])
    return lambda x: session.run(["y"], {"x": x})[0]


if __name__ == "__main__":
    main()
