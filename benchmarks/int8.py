"""INT8 of every family on solar cells: what it does to scores, and how much faster it is.

Each detector is fitted on 100 intact cells of elpv-dataset, built with 80 others, and verified on
150 intact and 150 defective ones that nothing has seen, by the commands that users run. Scores are
held against the reference in PyTorch, speed against the float32 artifact of the same backend. The
same Q/DQ graph is run by both backends, and given to TensorRT-RTX. Families that train are stopped
after two minutes; ResNets are distilled, see benchmarks/distilled.py; what anomalib trained is in
benchmarks/int8_anomalib.py.

    python benchmarks/int8.py [--only "mono patchcore"] [--steps int8,agreement,search,speed,auto]
        [--document docs/int8.md]

A detector takes five steps, and only `speed` wants an idle machine: `int8` builds and verifies
float32 and INT8, `agreement` runs one graph in both backends, `search` builds `auto`, `speed`
builds `auto` again (what was searched is kept, what is timed is timed anew) and times what was
built, `auto` verifies it. What was measured is kept in benchmark-output/int8, a file a detector, so
that a run which was stopped goes on; --again measures the given steps anew. Each row goes into the
document's tables as far as it is measured; the rows of others stay as they are.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from detectors import OUTPUT, lay_out
from distilled import STEPS as RESNETS
from distilled import fit_patchcore
from documents import replace_table, table_rows

from vadexport.detectors.families import FAMILIES
from vadexport.machine import processor_name, tool_versions

WORK = OUTPUT / "int8"
BACKENDS = ("openvino", "onnxruntime")
GPU = "tensorrt-rtx:int8@sm86"
TARGETS = tuple(f"{backend}:{word}" for word in ("fp32", "int8") for backend in BACKENDS)
AUTO = tuple(f"{backend}:auto" for backend in BACKENDS)
ROUNDS = 100
MINUTES = 2
ORDER = (
    *("mono patchcore", "mono padim", "mono patchcore resnet18", "mono student_teacher"),
    *("mono efficient_ad", "mono autoencoder", "poly patchcore", "poly padim"),
    *("poly student_teacher", "poly efficient_ad", "poly autoencoder"),
    *("mono patchcore wide_resnet50_2", "mono diffusion", "poly diffusion"),
)


@dataclass(frozen=True)
class Goals:
    """What a precision is to hold: limits of rank correlation, AUROC loss and share of flips."""

    spearman: float
    auroc_loss: float
    flips: float


GOALS: Final = {"int8": Goals(0.99, 0.005, 0.02), "auto": Goals(0.999, 0.001, 0.005)}
#: Of the speed-up that all INT8 gives, what `auto` is to keep; of ResNets, over float32.
LEAST_SHARE: Final = 0.8
LEAST_OF_RESNETS: Final = 3.0


def main() -> None:
    """Measure what is not yet measured, and put it into tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(ORDER), help="detectors, joined by commas")
    parser.add_argument("--steps", default=",".join(STEPS), help="of what is to be done")
    parser.add_argument("--again", action="store_true", help="what was measured before as well")
    parser.add_argument("--document", type=Path, help="whose tables take the rows")
    options = parser.parse_args()
    print(processor_name(), tool_versions(), flush=True)
    for name in options.only.split(","):
        if name not in ORDER:
            sys.exit(f"unknown detector {name!r}; known: {', '.join(ORDER)}")
        found = kept(name)
        for step in options.steps.split(","):
            if options.again or step not in found:
                started = time.monotonic()
                found[step] = STEPS[step](name)
                print(f"{name}: {step} in {time.monotonic() - started:.0f} s", flush=True)
                (folder(name) / "found.json").write_text(json.dumps(found, indent=2) + "\n")
        if "int8" in found:
            for backend, line in lines(name, found).items():
                print(line, flush=True)
                put(options.document, "parity", HEAD, f"{name}, {backend}", line)
            if "agreement" in found:
                line = agreement_line(name, found)
                print(line, flush=True)
                put(options.document, "agreement", AGREEMENT_HEAD, name, line)


def folder(name: str) -> Path:
    """Where a detector's artifacts and figures are."""
    made = WORK / name.replace(" ", "_")
    made.mkdir(parents=True, exist_ok=True)
    return made


def kept(name: str) -> dict[str, Any]:
    """What was measured before."""
    path = folder(name) / "found.json"
    return json.loads(path.read_text()) if path.exists() else {}


def checkpoint_of(name: str) -> Path:
    """The detector, fitted if it was not."""
    data, family, *backbone = name.split()
    images, path = lay_out(data), WORK / f"{name.replace(' ', '_')}.safetensors"
    if not path.exists():
        if backbone:
            fit_patchcore(backbone[0], images / "train", path)
        else:
            bound = ("--max-minutes", MINUTES) if FAMILIES[family].trains else ()
            run("fit", family, images / "train", "-o", path, *bound)
    return path


def whole(name: str) -> dict[str, Any]:
    """Build float32 and INT8, and verify them."""
    artifacts = folder(name) / "artifacts"
    built = build(name, artifacts, *TARGETS, GPU)
    for path in artifacts.glob("tensorrt-rtx-*"):
        shutil.rmtree(path)  # what was to be seen is whether it is built
    return {
        "notes": built["notes"],
        "failed": {one["target"]: one["error"] for one in built["targets"] if one["error"]},
        "targets": verified(name, artifacts),
    }


def agreed(name: str) -> dict[str, Any]:
    """Let both backends run one graph."""
    from int8_agreement import agreement

    return agreement(checkpoint_of(name), lay_out(data_of(name)))


def searched(name: str) -> dict[str, Any]:
    """Build `auto`; what its searches judge is kept, so the next build takes no time for them."""
    return {"notes": build(name, folder(name) / "searched", *AUTO)["notes"]}


def speeds(name: str) -> dict[str, Any]:
    """Build `auto` again, whose clock needs an idle machine, and time each backend's artifacts."""
    images, autos = lay_out(data_of(name)), folder(name) / "autos"
    found: dict[str, Any] = {}
    if "search" in kept(name):
        found["notes"] = build(name, autos, *AUTO)["notes"]
    for backend in BACKENDS:
        paths = [folder(name) / "artifacts" / f"{backend}-{word}" for word in ("fp32", "int8")]
        there = [path for path in (*paths, autos / f"{backend}-auto") if path.exists()]
        timed = run("bench", *there, "--images", images / "test" / "good", "--rounds", ROUNDS)
        for each in timed["contestants"]:
            over = each["speedup_over_first"] or {"value": 1.0, "low": 1.0, "high": 1.0}
            threads = each["execution"]["threads"]
            found[each["name"]] = {"ms": each["median_ms"], "threads": threads, **over}
        found[f"{backend} warnings"] = timed["warnings"]
    return found


def mixed(name: str) -> dict[str, Any]:
    """Verify `auto` as it was built last."""
    return {"targets": verified(name, folder(name) / "autos")}


def verified(name: str, artifacts: Path) -> dict[str, Any]:
    """Figures of artifacts, and what their searches found, by target."""
    test = ("--images", lay_out(data_of(name)) / "test", "--rounds", 0)
    found = {}
    for each in run("verify", artifacts, "--reference", checkpoint_of(name), *test):
        parity = each["parity"]
        report = artifacts / parity["artifact_name"] / "report" / "build.json"
        found[parity["target"]] = {
            "held": parity["held"],
            **parity["figures"],
            "search": json.loads(report.read_text())["compiled"].get("search"),
        }
    return found


def build(name: str, into: Path, *wanted: str) -> Any:
    """Build a detector for some targets."""
    calibration = lay_out(data_of(name)) / "calibration"
    words = [word for target in wanted for word in ("--target", target)]
    return run("build", checkpoint_of(name), "-o", into, *words, "--calibration", calibration)


def data_of(name: str) -> str:
    """Which cells a detector is of."""
    return name.split(maxsplit=1)[0]


def run(*words: object) -> Any:
    """Run a command of vadexport; what it prints as JSON, where a target failed as well."""
    command = [sys.executable, "-m", "vadexport", *map(str, words), "--json", "-q"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 1) and not done.stdout.strip():
        sys.exit(f"{' '.join(command)} ended with {done.returncode}")
    return json.loads(done.stdout)


STEPS = {"int8": whole, "agreement": agreed, "search": searched, "speed": speeds, "auto": mixed}


# ------------------------------------------------------------------------------ tables
_FIGURES = ("Spearman", "AUROC loss", "flips", "drift", "× FP32")
HEAD = (
    "detector",
    *(f"`int8`: {_FIGURES[0]}", *_FIGURES[1:]),
    *("`auto`: layers in INT8", *_FIGURES, "share of `int8`'s"),
    "misses",
)
AGREEMENT_HEAD = ("detector", "mean", "largest", "engine by TensorRT-RTX")


def put(document: Path | None, table: str, head: tuple[str, ...], title: str, line: str) -> None:
    """A row into a table of the document, in its place."""
    if document is None:
        return
    rows = table_rows(document, table) | {title: line}
    names = [f"{name}{end}" for name in ORDER for end in ("", *(f", {one}" for one in BACKENDS))]
    ordered = [rows[each] for each in names if each in rows]
    lines = (f"| {' | '.join(head)} |", "|" + "---|" * len(head), *ordered)
    replace_table(document, "\n".join(lines) + "\n", table)


def lines(name: str, found: dict[str, Any]) -> dict[str, str]:
    """A row for each backend."""
    rows = {}
    for backend in BACKENDS:
        whole, auto = (f"{backend}:{precision}" for precision in ("int8", "auto"))
        cells = [f"{name}, {backend}", *figures(found, whole), layers(found, auto)]
        cells += [*figures(found, auto), share_cell(found, backend)]
        cells.append("; ".join(missed(name, found, backend)) or "–")
        rows[backend] = f"| {' | '.join(cells)} |"
    return rows


def figures_of(found: dict[str, Any], target: str) -> dict[str, Any] | None:
    """Of an artifact; None where it is not built or not verified."""
    step = "auto" if target.endswith(":auto") else "int8"
    one: dict[str, Any] | None = found.get(step, {}).get("targets", {}).get(target)
    return one


def figures(found: dict[str, Any], target: str) -> list[str]:
    """Cells of what an artifact does to scores, and of its speed-up."""
    one = figures_of(found, target)
    if one is None:
        return ["–"] * 5
    return [
        f"{one['spearman']:.4f}",
        f"{one['auroc_reference'] - one['auroc']:+.4f}",
        f"{one['flips']}/{one['images']}",
        f"{one['drift_max']:.2f}",
        speed_cell(found, target),
    ]


def speed_cell(found: dict[str, Any], target: str) -> str:
    """Speed-up over the float32 artifact."""
    one = found.get("speed", {}).get(target)
    if one is None:
        return "–"
    doubt = ", disturbed" if found["speed"][f"{target.split(':', maxsplit=1)[0]} warnings"] else ""
    return f"{one['value']:.2f} ({one['ms']:.1f} ms{doubt})"


def layers(found: dict[str, Any], target: str) -> str:
    """What a search chose."""
    one = figures_of(found, target)
    if one is None:
        return "–"
    search = one["search"]
    if search["shipped"] != "int8":
        return f"0 of {search['layers']}: {search['shipped']}"
    point = search["points"][search["chosen"]]
    inside = search["layers"] - len(point["float_layers"])
    return f"{inside} of {search['layers']}, others {point['float_type']}"


def share(found: dict[str, Any], backend: str) -> float | None:
    """Speed-up of `auto` by that of all INT8; None where they were not timed."""
    speed = found.get("speed", {})
    auto, whole = (speed.get(f"{backend}:{precision}") for precision in ("auto", "int8"))
    return auto["value"] / whole["value"] if auto and whole else None


def share_cell(found: dict[str, Any], backend: str) -> str:
    """How much of the speed-up is kept."""
    kept_share = share(found, backend)
    return "–" if kept_share is None else f"{kept_share:.0%}"


def missed(name: str, found: dict[str, Any], backend: str) -> list[str]:
    """Goals that are not reached."""
    words = []
    for precision, goals in GOALS.items():
        one = figures_of(found, f"{backend}:{precision}")
        if one is None:
            words.append(f"`{precision}`: not measured")
            continue
        short = {
            "Spearman": one["spearman"] < goals.spearman,
            "AUROC": one["auroc_reference"] - one["auroc"] > goals.auroc_loss,
            "flips": one["flips"] / one["images"] > goals.flips,
        }
        if precision == "auto":
            speed, part = found.get("speed", {}).get(f"{backend}:auto"), share(found, backend)
            least = LEAST_OF_RESNETS if name.rsplit(maxsplit=1)[-1] in RESNETS else 0.0
            short["speed-up"] = bool(speed) and speed["value"] < least
            short["share"] = part is not None and part < LEAST_SHARE
        names = [word for word, is_short in short.items() if is_short]
        if names:
            words.append(f"`{precision}`: {', '.join(names)}")
    return words


def agreement_line(name: str, found: dict[str, Any]) -> str:
    """How far the two backends are apart, and whether TensorRT-RTX takes the graph."""
    apart = found["agreement"]
    engine = found["int8"]["failed"].get(GPU, "yes")[:120].replace("|", "/")
    return f"| {name} | {apart['mean']:.4f} | {apart['max']:.4f} | {engine} |"


if __name__ == "__main__":
    main()
