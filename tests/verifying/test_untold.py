from types import SimpleNamespace

import pytest

from vadexport.targets import Target
from vadexport.verification.drift import DriftUnit
from vadexport.verifying.diagnosing import Subject, _untold


@pytest.mark.parametrize(
    ("target", "rungs", "named"),
    [
        ("openvino:fp32", ["traced", "compiled"], None),
        ("openvino:fp32", ["traced", "approximated", "compiled"], "approximated or compiled"),
        ("openvino:int8", ["traced", "quantised", "compiled"], "quantised or compiled"),
        ("openvino:auto", ["traced", "compiled"], None),
    ],
)
def test_steps_whose_graph_was_not_kept_are_named_together(tmp_path, target, rungs, named):
    parity = [{"rung": rung, "held": True} for rung in rungs]
    manifest = SimpleNamespace(target=Target.parse(target), parity=parity)
    artifact = SimpleNamespace(folder=tmp_path, manifest=manifest)
    assert _untold(Subject(artifact, (), DriftUnit(1.0, "scores"))) == named
