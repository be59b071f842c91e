import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vadexport.reporting.summary import summary_markdown
from vadexport.verification.evidence import Evidence
from vadexport.verification.latency import Speedup
from vadexport.verification.limits import Check, Limits
from vadexport.verification.losses import Compared, Loss
from vadexport.verification.parts import Parts
from vadexport.verification.statistics import Interval
from vadexport.verification.throughput import Throughput


def test_the_verdict_stands_first_then_every_check(make):
    lines = summary_markdown(make.verification()).splitlines()
    assert lines[0] == "## ✓ `openvino:int8` against detector.safetensors: all 3 checks held"
    assert [line[:3] for line in lines[2:5]] == ["- ✓"] * 3


def test_what_fell_short_stands_before_what_held(make):
    checks = (
        Check("finite", held=True, line="fine"),
        Check("drift", held=False, line="largest drift 2, limit 1"),
    )
    lines = summary_markdown(make.verification(checks=checks)).splitlines()
    assert lines[0].endswith("1 of 2 checks fell short")
    assert lines[2:4] == ["- ✗ largest drift 2, limit 1", "- ✓ fine"]


def test_limits_that_were_not_checked_are_told(make):
    text = summary_markdown(make.verification(limits=Limits(max_map_drift=0.1)))
    assert "- – not checked: largest difference of a map" in text


def test_figures_of_both_with_their_bounds(make):
    evidence = Evidence(
        drift_quantiles={},
        kendall=None,
        flips=Interval(0.25, 0.006, 0.806),
        auroc=None,
        f1_max=Compared(0.9, 0.85, Loss(0.05, 0.0, 0.1, 0.0)),
        aupro=Compared(0.8, 0.7, Loss(0.1, None, None, -0.3, 60)),
        mask_iou=None,
        map_spearman=None,
    )
    text = summary_markdown(make.verification(evidence=evidence))
    assert "| image AUROC | 0.9912 | 0.9871 |" in text
    assert "| F1-max | 0.9000 | 0.8500 (loss 0.05, 95% interval 0 to 0.1) |" in text
    no_interval = "too few images change their place, about 60 of each label would do"
    assert f"| AUPRO | 0.8000 | 0.7000 (loss 0.1, no interval: {no_interval}) |" in text
    assert "| flipped decisions | – | 1/4 (95%: 0.6% to 80.6%) |" in text
    assert "| size on disk | – | 12.3 MB |" in text
    assert "| median latency | 60.0 ms (float32) | 6.00 ms (INT8 network) |" in text
    assert "| compiled | 0.31 | fell short |" in text


def test_images_that_flipped_or_drifted_most(make):
    records = [make.record(f"{n}.png", 1.0, 1.0 + n / 100) for n in range(20)]
    records += [make.record("a|b.png", 1.9, 2.1), make.record("c.png", 1.0, float("nan"))]
    v = make.verification(records=tuple(records), threshold=2.0, drift_unit=0.5)
    lines = summary_markdown(v).splitlines()
    start = lines.index("| image | reference | artifact | drift | listed for |") + 2
    rows = lines[start : start + 10]
    assert rows[0] == "| c.png | 1.0000 | not finite | not finite | not finite (artifact) |"
    assert rows[1] == "| a\\|b.png | 1.9000 | 2.1000 | +0.400 | flip |"
    assert [row.split(" | ")[0] for row in rows[2:]] == [f"| {n}.png" for n in range(19, 11, -1)]
    assert not lines[start + 10].startswith("|")


def test_the_floor_stands_below_the_speedup(make):
    given = make.latency()
    latency = replace(given, artifact=replace(given.artifact, again=Interval(1.0, 0.98, 1.01)))
    lines = summary_markdown(make.verification(latency=latency)).splitlines()
    title = "A/A floor [95% interval against itself]"
    assert f"| {title} | – | 1.020 [0.980–1.010] |" in lines


def test_the_reference_under_torch_compile(make):
    given = make.latency()
    over = Speedup("openvino:int8", "compiled", Interval(5.0, 4.5, 5.25))
    compiled = replace(given.reference, name="compiled", median_ms=31.25)
    latency = replace(given, compiled=compiled, over_compiled=over)
    text = summary_markdown(make.verification(latency=latency))
    assert "| torch.compile: median, and speed-up over it | 31.2 ms | 5.00 [4.50–5.25] |" in text


@pytest.mark.parametrize(
    ("preprocessing", "words"),
    [(1.5, ["1.50 ms", "4.50 ms"]), (None, ["cannot be run alone", "–"])],
)
def test_where_the_time_of_a_call_goes(make, preprocessing, words):
    latency = replace(make.latency(), parts=Parts(2.25, preprocessing, 6.0))
    lines = summary_markdown(make.verification(latency=latency)).splitlines()
    assert "| reading and decoding the images of a call | – | 2.25 ms |" in lines
    assert f"| preprocessing | – | {words[0]} |" in lines
    assert f"| inference | – | {words[1]} |" in lines
    assert "| together | – | 8.25 ms |" in lines
    assert "| images per second, call after call | 16.7 | 167 |" in lines


def test_images_of_several_streams(make):
    rates = {
        "throughput": Throughput(4, 250.5, (250.5,)),
        "reference_throughput": Throughput(1, 30.25, ()),
    }
    text = summary_markdown(make.verification(latency=replace(make.latency(), **rates)))
    line = "| images per second, call beside call | 30.2 in 1 stream | 250 in 4 streams |"
    assert line in text.splitlines()


def test_a_quantile_that_too_few_calls_tell_is_a_dash_with_the_reason(make):
    given = make.latency()
    enough = replace(given.artifact, p99_ms=7.25)
    few = replace(given.reference, p90_ms=None)
    latency = replace(given, artifact=enough, reference=few)
    lines = summary_markdown(make.verification(latency=latency)).splitlines()
    assert "| 90% of the calls within | – (29 calls tell, 3 were timed) | 6.80 ms |" in lines
    assert "| 99% of the calls within | – (299 calls tell, 3 were timed) | 7.25 ms |" in lines


def test_what_the_search_chose(make):
    assert "Search" not in summary_markdown(make.verification())
    text = summary_markdown(make.verification(search=make.search()))
    words = "auto: INT8 but for 3 of 5 layers, 1.50 times as fast as float32 when built"
    assert f"Search of the build: {words}." in text.splitlines()


def test_without_latency(make):
    assert "latency" not in summary_markdown(make.verification(latency=None))


@given(name=st.text(st.characters(codec=None), max_size=30))
def test_no_name_of_a_file_is_markdown_html_or_a_line_of_its_own(make, name):
    plain = summary_markdown(make.verification(warnings=("x",)))
    text = summary_markdown(make.verification(warnings=(name or "x",)))
    text.encode(errors="backslashreplace")
    assert len(text.splitlines()) == len(plain.splitlines())
    (line,) = [
        new for new, old in zip(text.splitlines(), plain.splitlines(), strict=True) if new != old
    ] or ["- x"]
    assert not re.search(r"(?<!\\)(\\\\)*[<\[`|]", line.removeprefix("- "))
