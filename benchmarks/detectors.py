"""Every family of detectors, the whole way, on solar cells and on woven cloth.

Each is fitted on 100 normal images with its own defaults, built for three targets, verified and
evaluated by the commands that users run. Families that train are stopped after --minutes. What was
measured is kept in OUTPUT/results.json after each step, so a run that was stopped goes on; the
table goes to standard output, and into a document between its two markers.

    python benchmarks/detectors.py [--families patchcore,…] [--data mono,poly,cloth] [--minutes 2]
        [--document docs/detectors.md]
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cells import copy_cells
from documents import replace_table
from textures import write_category

from vadexport.backends.base import available_threads
from vadexport.detectors.families import FAMILIES
from vadexport.machine import processor_name, tool_versions

OUTPUT = Path("benchmark-output")
TARGETS = ("openvino:fp32", "openvino:int8", "onnxruntime:fp32")
#: Images of each part of the solar cells; no image is in two of them.
CELLS = {"train/good": 100, "calibration/good": 80, "test/good": 150, "test/defective": 150}


def main() -> None:
    """Measure what is not yet measured, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--data", default="mono,poly,cloth")
    parser.add_argument("--minutes", type=float, default=2.0, help="of training, at most")
    parser.add_argument("--document", type=Path, help="whose table is replaced")
    options = parser.parse_args()
    OUTPUT.mkdir(exist_ok=True)
    results = OUTPUT / "results.json"
    found: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    now = conditions(options.minutes)
    for data in options.data.split(","):
        folder = lay_out(data)
        for family in options.families.split(","):
            key = f"{data}/{family}"
            # Rows of other versions, another processor or other minutes are measured again.
            if found.get(key, {}).get("conditions") != now:
                found[key] = {**measure(folder, family, options.minutes), "conditions": now}
                results.write_text(json.dumps(found, indent=2) + "\n")
            print(key, json.dumps(found[key]), flush=True)
    table = as_table(found)
    print(table)
    if options.document is not None:
        replace_table(options.document, table)


def conditions(minutes: float) -> dict[str, Any]:
    """What figures hold for."""
    return {
        "minutes": minutes,
        "processor": f"{processor_name()}, {available_threads()} threads",
        "versions": tool_versions(),
    }


def lay_out(data: str) -> Path:
    """The category folder of a data set; it is there whole or not at all."""
    folder, partial = OUTPUT / data, OUTPUT / f"{data}.partial"
    if not folder.exists():
        shutil.rmtree(partial, ignore_errors=True)
        if data == "cloth":
            write_category(partial)
        else:
            copy_cells(partial, data, CELLS)
        partial.rename(folder)
    return folder


def measure(data: Path, family: str, minutes: float) -> dict[str, Any]:
    """Fit, build, verify and evaluate one family; figures by name."""
    work = OUTPUT / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    checkpoint, artifacts = work / "d.safetensors", work / "artifacts"
    bound = ["--max-minutes", str(minutes)] if FAMILIES[family].trains else []
    started = time.monotonic()
    stages = run("fit", family, data / "train", "-o", checkpoint, *bound)["stages"]
    seconds = time.monotonic() - started
    targets = [word for target in TARGETS for word in ("--target", target)]
    run(
        *("build", checkpoint, "-o", artifacts, *targets),
        *("--calibration", data / "calibration"),
    )
    verified = run("verify", artifacts, "--reference", checkpoint, "--images", data / "test")
    evaluated = run("evaluate", checkpoint, data)["categories"][0]
    return {
        "fit_s": round(seconds),
        "mb": round(checkpoint.stat().st_size / 1e6, 1),
        "image_auroc": evaluated["image_auroc"],
        "pixel_auroc": evaluated.get("pixel_auroc"),
        "aupro": evaluated.get("aupro"),
        "stages": stages,
        "targets": {
            each["parity"]["target"]: {**figures_of(each), "mb": size_of(artifacts, each)}
            for each in verified
        },
    }


def size_of(artifacts: Path, verified: dict[str, Any]) -> float:
    """Megabytes of an artifact's model files."""
    folder = artifacts / verified["parity"]["artifact_name"]
    return round(sum(path.stat().st_size for path in folder.glob("model.*")) / 1e6, 1)


def figures_of(verified: dict[str, Any]) -> dict[str, Any]:
    """What the table shows of one artifact."""
    parity, latency = verified["parity"], verified["latency"]
    return {
        "held": parity["held"],
        "drift": parity["figures"]["drift_max"],
        "flips": parity["figures"]["flips"],
        "images": parity["figures"]["images"],
        "auroc": parity["figures"]["auroc"],
        "spearman": parity["figures"]["spearman"],
        "speedup": latency["speedup"]["ratio"],
        "disturbed": max(latency[who]["disturbed_calls"] or 0 for who in ("artifact", "reference")),
        "ms": latency["artifact"]["median_ms"],
        "reference_ms": latency["reference"]["median_ms"],
    }


def run(*words: object) -> Any:
    """Run a command of vadexport; what it prints as JSON."""
    command = [sys.executable, "-m", "vadexport", *map(str, words), "--json", "-q"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 1):
        sys.exit(f"{' '.join(command)} ended with {done.returncode}")
    return json.loads(done.stdout)


def as_table(found: dict[str, Any]) -> str:
    """Two Markdown tables: the detectors, and what became of them on each target."""
    lines = [
        f"{where['processor']}; training at most {where['minutes']:g} minutes; "
        + ", ".join(f"{name} {version}" for name, version in where["versions"].items())
        for where in unlike([one["conditions"] for one in found.values()])
    ]
    lines += [
        "",
        "| data | family | image AUROC | pixel AUROC | AUPRO | fit, s | training | MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, one in found.items():
        data, family = key.split("/")
        quality = " | ".join(_three(one[name]) for name in ("image_auroc", "pixel_auroc", "aupro"))
        ends = "; ".join(
            f"{stage['steps']} of {stage['of']} steps, {stage['ended']}" for stage in one["stages"]
        )
        lines.append(
            f"| {data} | {family} | {quality} | {one['fit_s']} | {ends or '–'} | {one['mb']} |"
        )
    lines += [
        "",
        "| data | family | target | drift | Spearman | flips | AUROC | held | MB | ms | speed-up |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key, one in found.items():
        data, family = key.split("/")
        for target, each in one["targets"].items():
            doubt = " (disturbed)" if each["disturbed"] > 0.1 else ""
            lines.append(
                f"| {data} | {family} | {target} | {each['drift']:.2g} | {_four(each['spearman'])} "
                f"| {each['flips']}/{each['images']} | {_three(each['auroc'])} "
                f"| {'yes' if each['held'] else 'no'} | {each['mb']} "
                f"| {each['ms']:.1f} | {each['speedup']:.2f}{doubt} |"
            )
    return "\n".join([*lines, ""])


def unlike(values: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each of the values once."""
    return [value for number, value in enumerate(values) if value not in values[:number]]


def _three(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _four(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    main()
