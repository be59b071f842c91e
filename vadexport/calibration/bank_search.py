"""Plans for searching a graph's memory banks, from the queries of normal images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray

from vadexport.calibration.observing import run_graph
from vadexport.calibration.synthetic_defects import planted
from vadexport.contract import Call, ImageInput
from vadexport.images import ImageFile, load_images
from vadexport.passes.cutting import cut
from vadexport.passes.quantised_search import SearchInput, search_inputs
from vadexport.passes.search_plan import SearchPlan, plan_search

#: Values of the smallest bank that is searched in INT8; with fewer there is little to gain.
LEAST_VALUES: Final = 200_000
#: Images whose queries are looked up, as they are and with a planted defect each.
_MOST_IMAGES: Final = 32
#: Queries of all images together.
_MOST_QUERIES: Final = 16_384
_SEED: Final = 0


def large_searches(model: onnx.ModelProto) -> dict[str, SearchInput]:
    """Searches of banks that are large enough for INT8 to be faster."""
    found = search_inputs(model).items()
    return {name: each for name, each in found if each.bank.rows.size >= LEAST_VALUES}


def plan_searches(
    model: Path,
    images: Sequence[ImageFile],
    image_input: ImageInput,
    limit: float,
    row_steps: int | None,
    progress: Callable[[int, int], None],
) -> dict[str, SearchPlan | None]:
    """Plan each search of a large bank. To be run in a child process.

    Args:
        model: ONNX file, behind the passes that come before `QuantisedSearch`.
        images: normal ones, of which some are taken, evenly spaced.
        image_input: the graph's input.
        limit: that no distance may grow beyond.
        row_steps: of rows in INT8; None to search in float32 in few directions.
        progress: told how many calls were run, of how many.

    Returns:
        A plan by the name of each search; None where no shortlist keeps to the limit.

    Raises:
        InputError: an image cannot be read or has the wrong size.
    """
    graph = onnx.load(model)
    searches = large_searches(graph)
    few = images[:: -(-len(images) // _MOST_IMAGES)]
    normal = [image for _, image in load_images(few, image_input)]
    shown = np.stack([*normal, *planted(normal, _SEED)])
    input_of_calls = replace(image_input, batch=image_input.batch or 1)
    calls = [call for call, _ in input_of_calls.batches(shown)]
    rows = _queries(graph, [each.queries for each in searches.values()], calls, progress)
    plans = {}
    for (name, each), queries in zip(searches.items(), rows, strict=True):
        plans[name] = plan_search(each.bank, queries, limit, row_steps) if len(queries) else None
    return plans


def _queries(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    calls: Sequence[Call],
    progress: Callable[[int, int], None],
) -> Iterator[NDArray[np.float32]]:
    """Rows [n, D] of each tensor: of each call some, drawn, and the one that reaches farthest."""
    names = list(dict.fromkeys(tensors))
    random = np.random.Generator(np.random.PCG64(_SEED))
    most = -(-_MOST_QUERIES // len(calls))
    drawn: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    for done, values in enumerate(run_graph(cut(model, names), calls), 1):
        for name, value in zip(names, values, strict=True):
            rows = value.reshape(-1, value.shape[-1])
            rows = rows[np.isfinite(rows).all(axis=1)]
            if len(rows) > most:
                farthest = np.abs(rows).max(axis=1).argmax()
                chosen = random.choice(len(rows), most - 1, replace=False)
                rows = rows[np.append(chosen, farthest)]
            drawn[name].append(rows)
        progress(done, len(calls))
    return (np.concatenate(drawn[name]) for name in tensors)
