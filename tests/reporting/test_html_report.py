import math
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vadexport.errors import MissingPackageError
from vadexport.reporting.html_report import html_report
from vadexport.verification.evidence import Evidence
from vadexport.verification.latency import Speedup, WarmUp
from vadexport.verification.limits import Check, Limits
from vadexport.verification.losses import Compared, Loss
from vadexport.verification.parts import Parts
from vadexport.verification.statistics import Interval
from vadexport.verification.throughput import Throughput

pytest.importorskip("jinja2")

VOID = {"meta", "img", "link", "br", "hr", "input"}
HOSTILE = "测试/<script>alert(1)</script>\" onload='x' &amp; \u202e.png"


class Page(HTMLParser):
    """The page; its constructor fails unless every element is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.attributes += [(tag, *one) for one in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)

    @property
    def text(self):
        return "\n".join(one for tag, all_ in self.texts.items() if tag != "style" for one in all_)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def page(v):
    text = html_report(v)
    # No address of anything outside, in whatever attribute, style or text.
    for outside in ("http:", "https:", "//www", "@import", "url(", "<script", "<link", "<iframe"):
        assert outside not in text
    found = Page(text)
    for _, name, value in found.attributes:
        assert name not in {"href", "xlink:href", "srcset", "action"}
        assert not name.startswith("on")
        assert name != "src" or value.startswith("data:image/png;base64,")
    return found


class TestWhole:
    def test_reads_top_to_bottom(self, make):
        found = page(make.verification())
        assert found.tags[0] == ("html", {"lang": "en"})
        assert found.texts["title"][0] == "openvino:int8 against detector.safetensors: held"
        assert len(found.all("h1")) == 1
        assert found.texts["h2"] == [
            "Scores",
            "Images that changed most",
            "Latency",
            "Anomaly maps",
            "Parity ladder",
            "Limits",
            "Environment",
        ]

    def test_accessible(self, make):
        found = page(make.verification())
        assert len(found.all("img")) == 7
        assert all(image["alt"] for image in found.all("img"))
        assert len(found.all("svg")) == 4
        assert all(
            drawing["aria-label"] and drawing["role"] == "img" for drawing in found.all("svg")
        )
        assert len(found.all("table")) == len(found.all("caption")) == 5
        assert all(heading["scope"] in {"row", "col"} for heading in found.all("th"))

    def test_ids_are_unique(self, make):
        ids = [value for _, name, value in page(make.verification()).attributes if name == "id"]
        assert len(ids) == len(set(ids))

    def test_same_text_each_time(self, make):
        assert html_report(make.verification()) == html_report(make.verification())


class TestVerdict:
    def test_held(self, make):
        text = page(make.verification()).text
        assert "Held: all 3 checks" in text
        assert "held: largest drift 0.6, limit 1" in text

    def test_fell_short(self, make):
        checks = (*make.verification().checks, Check("new", held=False, line="a < b & c, limit 3"))
        found = page(make.verification(checks=checks))
        assert "Fell short: 1 of 4 checks" in found.text
        # What fell short stands first.
        assert found.texts["li"][0] == "fell short: a < b & c, limit 3"
        assert all(f"held: {check.line}" in found.text for check in checks[:3])
        assert found.texts["title"][0] == "openvino:int8 against detector.safetensors: fell short"

    def test_a_limit_that_was_not_checked(self, make):
        v = make.verification(latency=None, checks=make.verification().checks[:2])
        text = page(v).text
        assert (
            "not checked: speed-up, lower end of its 95% interval: latency was not measured" in text
        )

    def test_warnings_come_before_the_figures(self, make):
        text = html_report(make.verification(warnings=("the file is <another>",)))
        assert 0 < text.index("the file is &lt;another&gt;") < text.index("image AUROC")


class TestFigures:
    def test_headlines(self, make):
        values = page(make.verification()).texts["dd"]
        assert values[::2] == [
            "0.9912 → 0.9871",
            "0.6",
            "0.35",
            "0.98765",
            "1 of 4",
            "12%",
            "60.0 → 6.00 ms",
            "10.0×",
            "12.3 MB",
        ]
        assert "reference in float32 → artifact in INT8 network" in values
        assert "95% interval 9.25 to 10.5" in values

    def test_what_figures_prove(self, make):
        evidence = Evidence(
            drift_quantiles={"50": 0.3, "99": 0.59},
            kendall=0.9,
            flips=None,
            auroc=Compared(0.9912, 0.9871, Loss(0.0041, None, None, -0.1, 75)),
            f1_max=Compared(0.9, 0.85, Loss(0.05, 0.01, 0.09, 0.01)),
            aupro=None,
            mask_iou=0.75,
            map_spearman=0.98765,
        )
        text = page(make.verification(evidence=evidence)).text
        assert "of the images have at most: 50% 0.3, 99% 0.59" in text
        assert "pixels' mean rank correlation 0.98765; masks' mean IoU 0.7500" in text
        assert "too few images change their place, about 75 of each label would do" in text
        assert "loss 0.05, 95% interval 0.01 to 0.09" in text

    def test_says_what_the_unit_is(self, make):
        text = page(make.verification()).text
        assert "One drift unit is 0.5 in raw score: the interquartile range" in text
        assert "on the 40 normal images that set its thresholds." in text

    def test_missing_ones(self, make):
        v = make.verification()
        figures = replace(v.figures, auroc=None, auroc_reference=None, spearman=None)
        found = page(replace(v, figures=figures, latency=None, exhibits=(), ladder=()))
        values = found.texts["dd"]
        assert values.count("–") == 3
        assert "no images of both labels" in values
        assert "not measured" in values
        assert "Latency" not in found.texts["h2"]
        assert "latency.json" not in found.text

    def test_limits(self, make):
        limits = Limits(max_drift=1.0, max_flips=0.02, max_latency_ms=20)
        text = page(make.verification(limits=limits)).text
        for words in ("≤ 1 drift units", "≤ 2% of the images", "≤ 20 ms"):
            assert words in text

    def test_ladder_of_another_version(self, make):
        rungs = ({"rung": "<b>", "flips": "many", "drift_max": math.nan, "images": 1e400}, {})
        text = page(make.verification(ladder=rungs)).text
        assert "<b>" in text
        assert "many" in text
        assert text.count("not finite") >= 2

    def test_environment(self, make):
        environment = {"verified_at": "today", "layers": {"u8": [1, 2]}, "none": None}
        text = page(make.verification(environment=environment)).text
        assert "verified at" in text
        assert "u8 1, 2" in text

    def test_what_it_is_of(self, make):
        v = make.verification()
        found = page(v)
        for name, digest in (
            ("SHA-256 of manifest.json", 64 * "a"),
            ("SHA-256 of model.xml", 64 * "c"),
            ("SHA-256 of the reference", 64 * "d"),
            ("SHA-256 over those of the images", 64 * "e"),
        ):
            assert name in found.texts["th"]
            assert digest in found.texts["td"]
        assert "12.3 MB" in found.texts["dd"]
        unknown = replace(v.identity, source=None, images=None)
        found = page(replace(v, identity=unknown))
        assert {"unknown", "no image was compared"} <= set(found.texts["td"])


class TestSearch:
    def test_stands_before_the_ladder(self, make):
        found = page(make.verification(search=make.search()))
        titles = found.texts["h2"]
        assert titles.index("Search for INT8 layers") == titles.index("Parity ladder") - 1
        assert len(found.all("svg")) == 5
        assert all(drawing["aria-label"] for drawing in found.all("svg"))
        assert len(found.all("table")) == len(found.all("caption")) == 7
        assert "auto: INT8 but for 3 of 5 layers, 1.50 times as fast as float32" in found.text
        assert "held, and was built" in found.texts["td"]

    def test_names_of_layers_are_no_html(self, make):
        assert "b/<b>" in page(make.verification(search=make.search())).texts["bdi"]

    def test_without_layers_that_were_judged(self, make):
        groups = tuple(replace(one, cost=None) for one in make.search().groups)
        found = page(make.verification(search=make.search(groups=groups)))
        assert len(found.all("table")) == 6

    def test_nothing_of_it_where_there_was_none(self, make):
        assert "INT8 layers" not in page(make.verification()).text


class TestFactsOfTheRun:
    def test_all_that_can_be_measured(self, make):
        given = make.latency()
        over = Speedup("openvino:int8", "compiled", Interval(5.0, 4.5, 5.25))
        artifact = replace(
            given.artifact, again=Interval(1.0, 0.98, 1.01), warm_up=WarmUp(16, steady=True)
        )
        latency = replace(
            given,
            artifact=artifact,
            compiled=replace(given.reference, median_ms=31.25),
            over_compiled=over,
            parts=Parts(2.25, 1.5, 6.0),
            throughput=Throughput(4, 250.5, (250.5,)),
            reference_throughput=Throughput(1, 30.25, (30.25,)),
        )
        text = page(make.verification(latency=latency)).text
        for words in (
            *("1.020 [0.980–1.010]", "16 calls", "– (299 calls tell, 3 were timed)"),
            *("31.2 ms", "5.00 [4.50–5.25]", "4.50 ms", "8.25 ms"),
            *("250 in 4 streams", "30.2 in 1 stream", "167"),
        ):
            assert words in text

    def test_what_the_system_does_not_say(self, make):
        assert "unknown" in page(make.verification(environment={"governor": None})).text


class TestImages:
    def test_flips_and_not_finite_come_first(self, make):
        records = (
            make.record("a", 1.0, 1.9),
            make.record("flipped", 1.95, 2.05),
            make.record("broken", raw=math.nan),
        )
        found = page(make.verification(records=records, exhibits=()))
        assert found.texts["bdi"] == ["detector.safetensors", "broken", "flipped", "a"]
        assert "normal → anomalous" in found.text
        assert "not finite" in found.texts["td"]

    def test_an_exhibit(self, make):
        found = page(make.verification())
        assert "largest drift. Label normal. Reference 1.0000, normal; art" in found.text
        assert found.all("img")[-1]["alt"] == "Colour scale from 0 to 0.25"

    def test_hostile_names(self, make):
        records = (make.record(HOSTILE), make.record("b\udcff\x07", 1.2, 1.3))
        exhibits = (replace(make.exhibit(), record=records[0]),)
        v = make.verification(records=records, exhibits=exhibits, source_name=HOSTILE)
        found = page(v)
        # Of the title, the table, the exhibit and its four pictures.
        assert found.texts["bdi"].count(HOSTILE) == 3 + 4
        assert any(image["alt"] == f"Camera image {HOSTILE}" for image in found.all("img"))
        assert any(words.startswith(HOSTILE) for words in found.texts["title"])

    def test_one_image(self, make):
        assert page(make.verification(records=(make.record(),)))

    def test_equal_scores(self, make):
        records = tuple(make.record(str(number), 1.0, 1.0) for number in range(5))
        assert page(make.verification(records=records))

    def test_no_finite_score(self, make):
        text = page(make.verification(records=(make.record(raw=math.inf),))).text
        assert "None of the 1 images has finite scores to draw." in text

    def test_thousands(self, make):
        records = tuple(
            make.record(f"{number}.png", 1 + number / 3000, 1.01 + number / 2900)
            for number in range(3000)
        )
        text = html_report(make.verification(records=records))
        assert len(text) < 2_000_000
        assert text.count("<tr>") < 80

    @settings(max_examples=25, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.text(max_size=8),
                st.floats(width=32),
                st.floats(width=32),
                st.sampled_from([True, False, None]),
            ),
            min_size=1,
            max_size=10,
        )
    )
    def test_any_images(self, make, given_):
        records = tuple(
            make.record(name, reference, raw, anomalous=anomalous)
            for name, reference, raw, anomalous in given_
        )
        text = html_report(make.verification(records=records, exhibits=()))
        assert Page(text)


def test_without_jinja2(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingPackageError, match=r"jinja2 .*vadexport\[report\]"):
        html_report(make.verification())
