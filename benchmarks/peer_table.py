"""Tables of benchmarks/peers.py, from what it keeps."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final, NamedTuple

from peer_builds import TARGETS
from peer_measuring import COMPILED, EAGER
from peer_rows import ROWS

Found = dict[str, Any]

#: Titles of contestants, in the table's order.
TITLES: Final = {
    EAGER: "PyTorch eager",
    "channels last": "PyTorch eager, channels last",
    COMPILED: "PyTorch, torch.compile",
    "anomalib f32": "anomalib's OpenVINO, float32 asked for",
    "anomalib": "anomalib's OpenVINO, as it runs by default",
    "anomalib ORT": "anomalib's ONNX in ONNX Runtime",
    "plain": "plain trace in OpenVINO, float32",
    "NNCF": "NNCF over the whole graph, OpenVINO",
    **{target: f"**vadexport** `{target}`" for target in TARGETS},
}
#: Builds that contestants come from, where they have another name.
_BUILDS: Final = {
    "anomalib f32": "anomalib-openvino",
    "anomalib": "anomalib-openvino",
    "anomalib ORT": "anomalib-onnx",
    "plain": "plain",
    "NNCF": "nncf",
}
#: Why there is no figure, where nothing failed.
_MISSING: Final = {
    COMPILED: "not timed by --quick",
    **dict.fromkeys(("anomalib f32", "anomalib", "anomalib ORT"), "no model of anomalib's"),
}
#: Artifacts that speed goals are held against.
GOAL_TARGETS: Final = ("openvino:int8", "openvino:auto")
OVER_OWN_FLOAT: Final = 1.7
MOST_OF_DOUBLING: Final = 1.9
MOST_SECONDS, MOST_GIGABYTES = 90, 8
_SEARCHES: Final = ("float32", "INT8")
_LARGE: Final = "patchcore-wide_resnet50_2"


class Line(NamedTuple):
    """A line of the table of goals."""

    what: str
    wanted: str
    cells: tuple[str, ...]
    reached: bool


def goals_table(rows: dict[str, Found], growth: Found | None) -> str:
    """Goals, and what was measured: figures missed are shown as missed."""
    lines = [*speed_lines(rows), *float_lines(rows), *build_lines(rows)]
    if growth:
        lines += doubling_lines(growth)
    head = ("goal", "wanted", *(f"`{each}`" for each in GOAL_TARGETS), "reached")
    body = [
        (line.what, line.wanted, *line.cells, "yes" if line.reached else "**no**") for line in lines
    ]
    return f"{conditions(rows)}\n\n{markdown(head, body)}"


def speed_lines(rows: dict[str, Found]) -> Iterator[Line]:
    """Speed-ups; reached where the lower end of one's interval, by its floor, is enough."""
    for name, found in rows.items():
        row = ROWS[name]
        for baseline, wanted in ((EAGER, row.over_eager), ("anomalib", row.over_anomalib)):
            if wanted is None or baseline not in found["measured"]["latency"]:
                continue
            ends, cells = [], []
            for target in GOAL_TARGETS:
                one = found["measured"]["latency"].get(target)
                cells.append(ratio(one, baseline) if one else "–")
                if one:
                    floor = max(one["floor"] or 1, floor_of(found, baseline))
                    ends.append(one["over"][baseline]["low"] / floor)
            what = f"{row.title}, over {TITLES[baseline]}"
            reached = any(end >= wanted for end in ends)
            yield Line(what, f"≥ {wanted:g} ×", tuple(cells), reached)


def float_lines(rows: dict[str, Found]) -> Iterator[Line]:
    """Float32 artifacts over anomalib's float32 export; and no artifact over its plain trace."""
    large = rows.get(_LARGE, {}).get("measured", {}).get("latency", {})
    if "openvino:fp32" in large and "anomalib f32" in large:
        one = large["openvino:fp32"]
        low = one["over"]["anomalib f32"]["low"] / (one["floor"] or 1)
        what = f"{ROWS[_LARGE].title}, `openvino:fp32` over {TITLES['anomalib f32']}"
        cells = (ratio(one, "anomalib f32"), "")
        yield Line(what, f"≥ {OVER_OWN_FLOAT} ×", cells, low >= OVER_OWN_FLOAT)
    slower = []
    least = dict.fromkeys(("openvino:fp32", *GOAL_TARGETS), "–")
    smallest = dict.fromkeys(least, float("inf"))
    for name, found in rows.items():
        for target in least:
            one = found["measured"]["latency"].get(target)
            if not one or "plain" not in one["over"]:
                continue
            over = one["over"]["plain"]
            if over["value"] < smallest[target]:
                smallest[target] = over["value"]
                least[target] = f"{ratio(one, 'plain')}, {ROWS[name].title}"
            if over["high"] * (one["floor"] or 1) < 1:
                slower.append((name, target))
    in_float = least.pop("openvino:fp32")
    words = f"no artifact slower than its plain trace; least of `openvino:fp32`: {in_float}"
    yield Line(words, "≥ 1 ×", tuple(least.values()), not slower)


def build_lines(rows: dict[str, Found]) -> Iterator[Line]:
    """The longest and the largest build of a target, of those that did not fail."""
    for key, most, unit in (("seconds", MOST_SECONDS, "s"), ("gigabytes", MOST_GIGABYTES, "GB")):
        worst: dict[str, tuple[float, str]] = {}
        for name, found in rows.items():
            for target in TARGETS:
                made = found["builds"].get(target, {})
                value = (made.get(key, 0.0), ROWS[name].title)
                if made and "error" not in made:
                    worst[target] = max(worst.get(target, value), value)
        if not worst:
            continue
        cells = tuple(
            f"{worst[each][0]:.1f} {unit}, {worst[each][1]}" if each in worst else "–"
            for each in GOAL_TARGETS
        )
        largest, target = max((value, each) for each, (value, _) in worst.items())
        what = f"most {key} of a build; of all targets: {largest:.1f} {unit}, `{target}`"
        yield Line(what, f"≤ {most} {unit}", cells, largest <= most)


def doubling_lines(growth: Found) -> Iterator[Line]:
    """The worst doubling of a bank."""
    found = {name: max(doublings(growth["bank"], name), default=0.0) for name in _SEARCHES}
    words = f"a bank of twice as many rows, head's time; float32: {found['float32']:.2f} ×"
    cells = (f"{found['INT8']:.2f} ×", "")
    yield Line(words, f"≤ {MOST_OF_DOUBLING} ×", cells, max(found.values()) <= MOST_OF_DOUBLING)


def doublings(sizes: Found, name: str) -> list[float]:
    """Ratios of a contestant's medians at each size and the one before."""
    values = [one[name]["ms"] for one in sizes.values() if name in one]
    return [after / before for before, after in pairwise(values)]


def contestants_table(rows: dict[str, Found]) -> str:
    """A line for each contestant of each row; of one that cannot be, why."""
    head = (
        *("detector", "contestant", "ms", "× eager", "× anomalib", "A/A floor"),
        *("drift", "Spearman", "flips", "build, s", "GB", "how it runs, or why not"),
    )
    body = []
    for name, found in rows.items():
        measured, builds = found["measured"], found["builds"]
        for contestant, title in TITLES.items():
            made = builds.get(_BUILDS.get(contestant, contestant), {})
            cells = [ROWS[name].title, title]
            one = measured["latency"].get(contestant)
            if one is None:
                reason = made.get("error") or measured["failed"].get(contestant)
                missing = reason or _MISSING.get(contestant, "not measured")
                body.append((*cells, *["–"] * 9, missing.replace("|", "/")))
                continue
            parity = measured["parity"].get(contestant)
            doubt = " (disturbed)" if one["disturbed"] else ""
            cells += [f"{one['ms']:.1f}{doubt}", ratio(one, EAGER), ratio(one, "anomalib")]
            cells += ["–" if one["floor"] is None else f"{one['floor']:.3f}"]
            cells += parity_cells(parity)
            cells += [f"{made['seconds']:.0f}", f"{made['gigabytes']:.1f}"] if made else ["–"] * 2
            body.append((*cells, execution_words(one["execution"])))
    return f"{conditions(rows)}\n\n{markdown(head, body)}"


def parity_cells(parity: Found | None) -> list[str]:
    """Drift, rank correlation and flips against PyTorch eager."""
    if parity is None:
        return ["–"] * 3
    order = "–" if parity["spearman"] is None else f"{parity['spearman']:.4f}"
    flips = "–" if parity["flips"] is None else f"{parity['flips']}/{parity['images']}"
    return [f"{parity['drift_max']:.2g}", order, flips]


def execution_words(execution: Found) -> str:
    """Precision, and how many layers run in which."""
    layers = ", ".join(f"{count} {name}" for name, count in execution["layers"].items())
    return f"{execution['precision']}{f' ({layers})' if layers else ''}"


def growth_table(growth: Found) -> str:
    """Two tables: banks and images."""
    parts = [growth["conditions"]]
    for key, first in (("bank", "rows of the bank"), ("image", "image, px")):
        names = list(dict.fromkeys(name for one in growth[key].values() for name in one))
        body = []
        for size, one in growth[key].items():
            cells = [f"{one[name]['ms']:.1f}" if name in one else "–" for name in names]
            body.append((f"{int(size):,}", *cells))
        parts.append(markdown((first, *(f"{name}, ms" for name in names)), body))
    return "\n\n".join(parts[:1]) + "\n\n" + "\n".join(parts[1:])


def peaks_table(peaks: Found) -> str:
    """The machine's matrix products, and the share of them that artifacts reach."""
    words = ", ".join(f"{name} {value:.0f}" for name, value in peaks["peaks"].items())
    head = ("detector", "artifact", "multiply-adds, 10⁹", "of them INT8", "ms", "share of the peak")
    body = [
        (
            *(ROWS[one["row"]].title, f"`{one['target']}`", f"{one['multiply_adds'] / 1e9:.2f}"),
            *(f"{one['int8'] / max(one['multiply_adds'], 1):.0%}", f"{one['ms']:.1f}"),
            f"{one['share']:.0%}",
        )
        for one in peaks["artifacts"]
    ]
    lead = f"{peaks['conditions']}; 10⁹ multiply-adds a second of one large MatMul: {words}"
    return f"{lead}\n\n{markdown(head, body)}"


def conditions(rows: dict[str, Found]) -> str:
    """Machine and versions, of each kind that there is; and how many rounds and images."""
    found = {}
    for one in rows.values():
        there = one["measured"]["environment"]
        tools = ("python", "numpy", "torch", "onnx", "onnxruntime", "openvino")
        versions = ", ".join(f"{tool} {there[tool]}" for tool in tools if tool in there)
        found[f"{there['processor']}, {there['threads']} threads; {versions}"] = None
    rounds = sorted({one["measured"]["rounds"] for one in rows.values()})
    images = sorted({one["measured"]["images"] for one in rows.values()})
    counts = f"rounds: {spread(rounds)}; images: {spread(images)}"
    return f"{'; '.join(found)}; {counts}"


def spread(values: list[int]) -> str:
    """One value, or the first and the last of several."""
    return f"{values[0]}" if len(values) == 1 else f"{values[0]}–{values[-1]}"


def ratio(one: Found, baseline: str) -> str:
    """A speed-up and its interval."""
    over = one["over"].get(baseline)
    return "–" if over is None else f"{over['value']:.2f} ({over['low']:.2f}–{over['high']:.2f})"


def floor_of(found: Found, name: str) -> float:
    """Of a contestant against itself."""
    return found["measured"]["latency"][name]["floor"] or 1.0


def markdown(head: tuple[str, ...], body: list[tuple[str, ...]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *body)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]]) + "\n"
