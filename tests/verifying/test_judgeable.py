"""Limits that somebody set, and that nothing can be held against, do not pass."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from vadexport.errors import InputError
from vadexport.images import ImageFile
from vadexport.listening import Listener
from vadexport.verifying import VerifyOptions, judgeable, verify
from vadexport.verifying.judgeable import check_judgeable

ALL = SimpleNamespace(thresholds=object(), map_size=(8, 8))
SILENT = SimpleNamespace(thresholds=None, map_size=None)
OPTIONS = VerifyOptions(Path("a"), Path("b"), "images")


def files(*labels):
    return [ImageFile(Path(str(n)), str(n), label) for n, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("name", "detector", "labels", "reason"),
    [
        ("max_flips", SILENT, (False, True), "the detector makes no decisions"),
        ("max_map_drift", SILENT, (False, True), "the detector gives no map"),
        ("min_auroc_delta", ALL, (True, True), "all images are anomalous"),
        ("min_spearman", ALL, (False,), "one image alone has no rank"),
    ],
)
def test_a_limit_that_was_set(name, detector, labels, reason):
    flag = f"--{name.replace('_', '-')}"
    for given in ({"limits": {name: 0.5}}, {"limits_of_precision": {"int8": {name: 0.5}}}):
        options = replace(OPTIONS, **given)
        with pytest.raises(InputError, match=f"^{flag} cannot be judged: {reason}"):
            check_judgeable(options, {"int8", "fp32"}, detector, files(*labels))
    check_judgeable(options, {"fp32"}, detector, files(*labels))  # it is meant for INT8
    check_judgeable(OPTIONS, {"int8"}, detector, files(*labels))


def test_what_can_be_judged():
    every = ("max_flips", "max_map_drift", "min_auroc_delta", "min_spearman")
    options = replace(OPTIONS, limits=dict.fromkeys(every, 0.5))
    check_judgeable(options, {"fp32"}, ALL, files(*(False, True)))
    check_judgeable(options, {"fp32"}, ALL, files(None, None))  # defects are planted


def test_memory_where_the_system_does_not_tell_it(artifact, checkpoint, images, monkeypatch):
    monkeypatch.setattr(judgeable, "peak_megabytes", lambda: None)
    options = VerifyOptions(artifact, checkpoint, str(images), {"max_memory_mb": 900.0})
    with pytest.raises(InputError, match=r"^--max-memory-mb cannot be judged: this system"):
        verify(options, Listener())


@pytest.mark.usefixtures("in_process")
def test_what_turns_out_later_falls_short(artifact, checkpoint, images, tmp_path, monkeypatch):
    from vadexport.verification import latency

    monkeypatch.setattr(latency, "peak_megabytes", lambda: None)
    options = VerifyOptions(
        artifact,
        checkpoint,
        str(images),
        {"max_memory_mb": 900.0},
        rounds=5,
        threads=1,
        report=tmp_path,
    )
    result = verify(options, Listener())
    assert result.exit_status == 1
    (found,) = result.verifications
    (check,) = [check for check in found.checks if not check.held]
    assert check.line.startswith("--max-memory-mb 900 cannot be judged: this system does not tell")
    assert found.diagnosis is None  # no step of the build explains that
