"""Engines of every family and of anomalib's models, built by TensorRT-RTX without a GPU.

For each detector, fp16 and int8, one engine for sm86 and sm89: how long it took to build, how large
it is, how many layers of the network are in float16, and the drift of the graph that the engine was
built from, run by ONNX Runtime with every float16 value rounded to float16. Detectors of the
families are fitted on solar cells (Deitsch et al. 2019) and judged on cells that nothing has seen;
anomalib's have random weights (benchmarks/anomalib_zoo.py) and are judged on noise.

No engine runs here: only a GPU shows that, see tests/gpu.

    python benchmarks/tensorrt_engines.py [--only patchcore,Padim] [--document docs/tensorrt.md]

Each row goes into the document's table once it is measured; the rows of others stay as they are.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from documents import replace_table, table_rows

TARGETS = ("tensorrt-rtx:fp16@sm86+sm89", "tensorrt-rtx:int8@sm86+sm89")
SIZE = "256x256"
FITS = {
    "patchcore": (),
    "padim": (),
    "student_teacher": ("--max-minutes", "1"),
    "efficient_ad": ("--max-minutes", "1"),
    "autoencoder": ("--max-minutes", "1"),
    "diffusion": ("--max-minutes", "1"),
}
#: Of every kind of arithmetic: neighbours, Gaussians, students, flows, attention, decoders.
ANOMALIB = (
    *("Cfa", "Dfkde", "Dfm", "Dinomaly", "Draem", "EfficientAd", "Fastflow", "Ganomaly", "Padim"),
    *("Patchcore", "ReverseDistillation", "Stfpm", "Supersimplenet", "Uflow", "UniNet"),
)
TIMEOUT_S = 3000


@dataclass(frozen=True)
class Row:
    """One detector and target.

    Attributes:
        built: whether there is an engine; if not, `reason` says why.
        seconds: of its build.
        megabytes: of the engine.
        precision: of the network.
        images: that it was judged on.
        drift: largest, of the graph, in drift units.
        flips: of decisions; None where there are none.
        reason: why there is no engine.
    """

    built: bool
    seconds: float = 0.0
    megabytes: float = 0.0
    precision: str = ""
    images: int = 0
    drift: float = 0.0
    flips: int | None = None
    reason: str = ""


def main() -> None:
    """Measure, and print rows of the table."""
    from vadexport.machine import processor_name, tool_versions

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join((*FITS, *ANOMALIB)))
    parser.add_argument("--document", type=Path, help="whose table takes the rows")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    print(processor_name(), tool_versions(), HEAD, sep="\n", flush=True)
    for name in options.only.split(","):
        line = as_line(name, measured_apart(name))
        print(line, flush=True)
        if options.document is not None:
            lines = table_rows(options.document) | {title(name): line}
            replace_table(options.document, as_table(lines))


def measured_apart(name: str) -> dict[str, Any]:
    """Measure in a process of its own; what stopped it where it failed."""
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--one", name],
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        reason = f"took longer than {TIMEOUT_S} s"
    else:
        if not done.returncode:
            found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
            return found
        reason = (done.stderr.strip().splitlines() or ["no word"])[-1][:200]
    return {target: asdict(Row(built=False, reason=reason)) for target in TARGETS}


def measure(name: str) -> dict[str, Any]:
    """Both rows of a detector."""
    os.environ["TQDM_DISABLE"] = "1"
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if name in FITS:
            from detectors import lay_out

            images = lay_out("mono")
            source = folder / "detector.safetensors"
            vadexport("fit", name, images / "train", "-o", source, "--size", SIZE, *FITS[name])
            calibration, unseen = images / "calibration", folder / "unseen.txt"
            cells = [
                sorted((images / "test" / kind).iterdir())[:50] for kind in ("good", "defective")
            ]
            unseen.write_text("".join(f"{path.absolute()}\n" for path in chain(*cells)))
        else:
            from anomalib_zoo import save

            source = save(name, folder)
            calibration, unseen = (
                noise(folder / "normal", 24),
                noise(folder / "unseen", 24, start=24),
            )
        return {target: asdict(row) for target, row in rows(source, calibration, unseen).items()}


def noise(folder: Path, count: int, start: int = 0) -> Path:
    """Images of coarse and fine noise."""
    from noise import rgb_noise
    from PIL import Image

    folder.mkdir()
    for number, image in enumerate(rgb_noise(start + count, 256, 256, seed=0)[start:]):
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


def rows(source: Path, calibration: Path, unseen: Path) -> dict[str, Row]:
    """Build the engines, and hold the graph of each against the reference."""
    folder = source.parent / "artifacts"
    targets = [word for target in TARGETS for word in ("--target", target)]
    size = ("--image-size", SIZE) if source.suffix == ".ckpt" else ()
    built = vadexport(
        *("build", source, "-o", folder, *targets, "--calibration", calibration, *size), fails=True
    )
    found = {target: Row(built=False, reason=reason(built.stderr, target)) for target in TARGETS}
    artifacts = [path.parent for path in sorted(folder.glob("*/manifest.json"))]
    if not artifacts:
        return found
    verified = vadexport(
        *("verify", folder, "--reference", source, "--images", unseen, "--proxy", "--json"),
        fails=True,
    )
    parity = {each["parity"]["target"]: each["parity"] for each in json.loads(verified.stdout)}
    for artifact in artifacts:
        manifest = json.loads((artifact / "manifest.json").read_text())
        report = json.loads((artifact / "report" / "build.json").read_text())["compiled"]
        figures = parity[manifest["target"]]["figures"]
        found[manifest["target"]] = Row(
            built=True,
            seconds=report["build_seconds"],
            megabytes=report["engine_bytes"] / 1e6,
            precision=manifest["precision"]["network"],
            images=figures["images"],
            drift=figures["drift_max"],
            flips=figures["flips"],
        )
    return found


def reason(told: str, target: str) -> str:
    """Why a target was not built: its own line, else the last."""
    lines = told.strip().splitlines() or ["no word"]
    own = [line for line in lines if target in line]
    return (own or lines)[-1][:200].replace("|", "/")  # which would end a cell


def vadexport(*words: object, fails: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command, quietly."""
    command = [sys.executable, "-m", "vadexport", *map(str, words), "--quiet"]
    return subprocess.run(command, check=not fails, capture_output=True, text=True)


TITLES = ("detector", "fp16: layers", "drift", "flips", "engine", "build")
HEAD = f"| {' | '.join((*TITLES, 'int8: drift', *TITLES[3:]))} |"


def as_table(lines: dict[str, str]) -> str:
    """A Markdown table of rows by their titles."""
    known = [title(name) for name in (*FITS, *ANOMALIB)]
    ordered = [lines[each] for each in known if each in lines]
    return "\n".join((HEAD, "|" + "---|" * HEAD.count(" | ") + "---|", *ordered)) + "\n"


def as_line(name: str, found: dict[str, Any]) -> str:
    """A row of the table."""
    half, eight = (Row(**found[target]) for target in TARGETS)
    layers = half.precision.removeprefix("fp16, ").removesuffix(" layers")
    return f"| {title(name)} | {layers} | {cells(half)} | {cells(eight)} |"


def title(name: str) -> str:
    """First cell of a detector's row."""
    return name if name in FITS else f"anomalib {name}"


def cells(one: Row) -> str:
    """Drift, flips, size and time of an engine; why there is none."""
    if not one.built:
        return f"no engine: {one.reason} | – | – | –"
    flips = "–" if one.flips is None else f"{one.flips}/{one.images}"
    return f"{one.drift:.2g} | {flips} | {one.megabytes:.1f} MB | {one.seconds:.1f} s"


if __name__ == "__main__":
    main()
