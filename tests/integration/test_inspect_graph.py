"""`inspect --graph`, and what `build` says of passes, as users read them."""

import json
import shutil

import pytest

from vadexport.cli.build import passes_table
from vadexport.tracing import graph as tracing
from vadexport.verification.applied import AppliedPass, Passes, PassTime
from vadexport.verification.statistics import Interval


def test_an_artifact(vadexport, artifact):
    shown = vadexport("inspect", "--graph", artifact)
    assert shown.status == 0, shown.err
    lines = [line.split() for line in shown.out.splitlines()]
    assert ["part", "operators", "layers", "weights"] in lines
    assert ["operator", "preprocessing", "network", "score", "head"] in lines
    (conv,) = [line for line in lines if line[:1] == ["Conv"]]
    (network,) = [line for line in lines if line[:1] == ["network"]]
    assert network[2:4] == [conv[2], "fp32"]
    assert ["map-as-matrices", "1"] in [line[:2] for line in lines]


def test_as_json_beside_what_the_manifest_holds(vadexport, artifact):
    plain, whole = (
        json.loads(vadexport("inspect", "--json", *more, artifact).out)[0]
        for more in ((), ("--graph",))
    )
    parts, passes = whole.pop("parts"), whole.pop("passes")
    assert whole == plain
    assert [part["part"] for part in parts] == ["preprocessing", "network", "score head"]
    assert parts[1]["layers"] == {"fp32": parts[1]["operators"]["Conv"]}
    assert passes["timed_on"].startswith("onnxruntime:fp32, ")


def test_an_artifact_without_its_report(vadexport, artifact, tmp_path):
    copy = tmp_path / "a"
    shutil.copytree(artifact, copy)
    shutil.rmtree(copy / "report")
    shown = vadexport("inspect", "--graph", copy)
    assert "passes: no report of the build tells of them" in shown.out


def test_a_source_as_it_would_be_built(vadexport, checkpoint, graph_of, monkeypatch):
    traced, simplified = graph_of("plain", 1)
    monkeypatch.setattr(tracing, "trace", lambda *_: traced)
    monkeypatch.setattr(tracing, "simplify", lambda _: simplified)
    (found,) = json.loads(vadexport("inspect", "--graph", "--json", checkpoint).out)
    assert [one["name"] for one in found["passes"]["applied"]] == [
        "gray-channels",
        "map-as-matrices",
        "nearest-neighbours",
    ]
    assert found["parts"][0]["operators"]["Concat"] == 1


def test_an_unknown_pass_is_wrong_usage(vadexport, checkpoint, tmp_path):
    found = vadexport("build", checkpoint, "-o", tmp_path / "a", "--no-pass", "bananas")
    assert found.status == 2
    assert "unknown pass 'bananas'; known: gray-channels, channel-selection, map-as" in found.err
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("timed_on", ["openvino:fp32, 2 threads", None])
def test_what_each_pass_brought(timed_on):
    time = PassTime(10.31, 9.02, Interval(1.14, 1.12, 1.16), 1.01) if timed_on else None
    applied = (
        AppliedPass("a", 2, time),
        AppliedPass("b", 1, undone="largest drift 3, limit 0.001"),
    )
    lines = [line.split() for line in passes_table([Passes(applied, ("c",), timed_on)])]
    words = " ".join(" ".join(line) for line in lines)
    assert "passes left out: c" in words
    assert ("a 2 10.3 → 9.02 ms" if timed_on else "a 2 not timed") in words
    assert "b 1 undone: largest drift 3, limit 0.001" in words
