from dataclasses import replace

import numpy as np
import pytest

from vadexport.backends.base import Execution
from vadexport.verification.identity import Identity
from vadexport.verification.latency import LatencyFigures, Speedup
from vadexport.verification.limits import Check, Limits
from vadexport.verification.parity import ParityFigures
from vadexport.verification.records import ImageRecord
from vadexport.verification.result import Exhibit, Latency, Verification
from vadexport.verification.searched import FoundCost, FoundGroup, FoundPoint, FoundSearch
from vadexport.verification.statistics import Interval


def make_record(name="good/1.png", reference=1.0, raw=1.1, *, anomalous=False, threshold=2.0):
    return ImageRecord(
        name,
        anomalous,
        reference,
        raw,
        reference > threshold,
        raw > threshold,
        0.2,
        0.01,
        1.5,
        consistent=True,
    )


def make_latency(artifact_ms=(5.0, 6.0, 7.0), reference_ms=(50.0, 60.0, 70.0)):
    def contestant(name, precision, samples, layers):
        execution = Execution(f"{name} 1.2", precision, "a processor", 2, layers)
        return LatencyFigures(
            name, execution, float(np.median(samples)), float(np.quantile(samples, 0.9)), samples
        )

    artifact = contestant("openvino:int8", "INT8 network", artifact_ms, {"u8": 52, "f32": 3})
    reference = contestant("reference", "float32", reference_ms, {})
    ratio = Speedup("openvino:int8", "reference", Interval(10.0, 9.25, 10.5))
    return Latency(artifact, reference, ratio, 1)


def make_exhibit(shift=0.25, size=(24, 32)):
    ramp = np.linspace(0, 1, size[0] * size[1], dtype=np.float32).reshape(size)
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    return Exhibit(make_record(), "largest drift", image, ramp, ramp + np.float32(shift))


def make_cost(drift, rms=None, spearman=0.999, flips=0, maps=0.05):
    return FoundCost(drift, drift / 2 if rms is None else rms, spearman, flips, maps)


def make_search(**changes):
    """Four groups of five layers; the form with three of them in float32 was built."""
    names = ("net/a/node_Conv_1", "net/a/node_Conv_2", "net/b/node_Conv_3", "net/b/<b>", "net/c")
    groups = (names[:2], names[2:3], names[3:4], names[4:])
    costs = (make_cost(0.9), make_cost(0.5, flips=2), make_cost(0.1), make_cost(float("nan")))

    def point(layers, cost, gain=None, *, order="cost", holds=False):
        return FoundPoint(order, layers, cost, holds, None if gain is None else Interval(*gain))

    best, front = make_cost(0.125, spearman=0.9999), make_cost(0.2)
    given = FoundSearch(
        groups=tuple(map(FoundGroup, groups, costs)),
        points=(
            point((), make_cost(1.25, flips=3), (2.0, 1.9, 2.1)),
            point(names[:2], make_cost(0.5)),
            point(names[:3], best, (1.5, 1.25, 1.75), holds=True),
            point(names[1:], front, (1.25, 1.2, 1.3), order="front", holds=True),
        ),
        chosen=2,
        finished=True,
        images=(16, 32),
        max_drift=0.25,
        least_spearman=0.9995,
    )
    return replace(given, **changes)


def make_verification(**changes):
    """A verification that holds; figures and checks are given, not computed."""
    records = (
        make_record(),
        make_record("good/2.png", 1.4, 1.3),
        make_record("crack/1.png", 3.0, 3.3, anomalous=True),
        make_record("crack/2.png", 2.1, 1.9, anomalous=True),
    )
    given = Verification(
        target="openvino:int8",
        artifact_name="artifact",
        source_name="detector.safetensors",
        threshold=2.0,
        drift_unit=0.5,
        drift_unit_from="the 40 normal images that set its thresholds",
        figures=ParityFigures(
            4,
            0.6,
            0.35,
            0.3,
            0.55,
            0.98765,
            1,
            0.12,
            0.004,
            0.9912,
            0.9871,
            not_finite=0,
            inconsistent=0,
        ),
        records=records,
        latency=make_latency(),
        limits=Limits(max_drift=1.0, min_speedup=3.0),
        checks=(
            Check("finite", held=True, line="0 of 4 images have scores that are not finite"),
            Check("drift", held=True, line="largest drift 0.6, limit 1"),
            Check("speedup", held=True, line="speed-up 10.00, limit 3"),
        ),
        exhibits=(make_exhibit(),),
        ladder=(
            {"rung": "traced", "held": True, "images": 8, "drift_max": 1.5e-6, "spearman": None},
            {"rung": "compiled", "held": False, "images": 8, "drift_max": 0.31, "flips": 2},
        ),
        identity=Identity(
            manifest=64 * "a",
            files={"model.bin": 64 * "b", "model.xml": 64 * "c"},
            source=64 * "d",
            reference=64 * "d",
            images=64 * "e",
            size=12_345_678,
        ),
        environment={"processor": "a processor", "threads": 2, "openvino": "2026.4.1"},
        warnings=(),
    )
    return replace(given, **changes)


@pytest.fixture(scope="session")
def make():
    """The functions above, by name: `make.record`, `make.verification`, …"""

    class Make:
        record = staticmethod(make_record)
        latency = staticmethod(make_latency)
        exhibit = staticmethod(make_exhibit)
        cost = staticmethod(make_cost)
        search = staticmethod(make_search)
        verification = staticmethod(make_verification)

    return Make
