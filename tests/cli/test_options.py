import click
import pytest

from vadexport.cli.options import ApproximateType, NumberType
from vadexport.cli.verify import command as verify

LIMITS = ["--max-drift", "--max-flips", "--max-map-drift", "--min-speedup", "--max-latency-ms"]


def wrong(option, value):
    """How `verify` refuses a value; None where it takes it."""
    words = ["nowhere", "--reference", "nowhere", "--images", "nowhere", f"{option}={value}"]
    try:
        verify.make_context("verify", words)
    except click.BadParameter as error:  # main ends it with its status, 2
        return error.format_message()
    return None


@pytest.mark.parametrize("option", LIMITS)
@pytest.mark.parametrize("value", ["nan", "-nan", "inf", "-inf", "-0.1", "-1e-300", "x", ""])
def test_limits_that_no_result_can_mean(option, value):
    assert option in wrong(option, value)


@pytest.mark.parametrize(
    ("option", "value", "is_wrong"),
    [
        ("--max-drift", "0", False),
        ("--max-drift", "1e9", False),
        ("--max-flips", "0", False),
        ("--max-flips", "1", False),
        ("--max-flips", "1.01", True),
        ("--max-flips", "int8=1", False),
        ("--max-flips", "int8=1.01", True),
        ("--max-flips", "int4=0.5", True),
        ("--max-flips", "=0.5", True),
        ("--max-flips", "int8=", True),
        ("--max-map-drift", "0", False),
        ("--min-speedup", "0", True),
        ("--min-speedup", "0.1", False),
        ("--max-latency-ms", "0", True),
        ("--max-latency-ms", "1e-3", False),
    ],
)
def test_ends_of_ranges(option, value, is_wrong):
    assert bool(wrong(option, value)) == is_wrong


def test_the_range_is_said():
    assert "nan is not in the range 0<=x<=1." in wrong("--max-flips", "nan")


def test_a_range_that_is_open():
    with pytest.raises(click.BadParameter, match=r"inf is not in the range x>0\."):
        NumberType(min=0, min_open=True).convert("inf", None, None)


@pytest.mark.parametrize(
    "words",
    [
        ["--quantile", "0"],
        ["--quantile", "1.1"],
        ["--quantile", "nan"],
        ["--seed", "-1"],
        ["--seed", str(2**63)],
        ["--seed", str(10**30)],
        ["--blur-sigma", "nan"],
        ["--coreset", "inf"],
    ],
)
def test_fit_refuses(run, images, tmp_path, words):
    done = run("fit", "patchcore", images / "good", "-o", tmp_path / "d.safetensors", *words)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert words[0].strip("-").split("-")[0] in done.stderr
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("minutes", ["0", "nan", "inf", "-1"])
def test_fit_refuses_to_train_for(run, images, tmp_path, minutes):
    words = ["-o", tmp_path / "d.safetensors", "--max-minutes", minutes]
    done = run("fit", "autoencoder", images / "good", *words)
    assert done.returncode == 2, done.stderr
    assert "--max-minutes" in done.stderr


def test_drift_of_approximations():
    take = ApproximateType().convert
    assert take("0.02", None, None) == 0.02
    assert take(value=True, param=None, ctx=None) is True
    for wrong_value in ("0", "-1", "nan", "inf", "detector.safetensors"):
        with pytest.raises(click.BadParameter, match="SOURCE goes before --approximate"):
            take(wrong_value, None, None)
