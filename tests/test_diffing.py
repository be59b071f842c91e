import hashlib
import json
import shutil
from contextlib import suppress

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from vadexport.cli.main import cli
from vadexport.diffing import diff, diff_folders
from vadexport.errors import InputError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


def parity(scores, **changes):
    """A `parity.json` of images by name: raw score and decision."""
    return {
        "schema_version": 1,
        "drift_unit": 2.0,
        "figures": {"images": len(scores), "drift_max": 0.1, "auroc": 0.9871, "flips": 0},
        "checks": [
            {"name": "drift", "held": True, "line": "largest drift 0.1, limit 1"},
            {"name": "flips", "held": False, "line": "1 of 3 decisions flipped"},
        ],
        "images": [
            {"name": name, "raw": raw, "label": label} for name, (raw, label) in scores.items()
        ],
        **changes,
    }


SCORES = {"a.png": (1.0, False), "b.png": (2.0, False), "c.png": (3.0, True)}


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "parity.json").write_text(json.dumps(content))
        return tmp_path / name

    return write


class TestReports:
    def test_of_the_same_is_nothing(self, write):
        found = diff(write("a", parity(SCORES)), write("b", parity(SCORES)))
        assert (found.build, found.figures, found.images, found.worse) == ((), (), (), ())
        assert (found.verified, found.notes) == ((), ())
        assert (found.shared, found.decisions, found.held) == (3, 0, True)

    def test_scores_that_moved_stand_largest_first_in_units_of_the_first(self, write):
        moved = {**SCORES, "a.png": (1.2, False), "b.png": (1.0, False)}
        after = parity(moved, drift_unit=7.0)
        found = diff(write("a", parity(SCORES)), write("b", after))
        assert [(one.name, one.drift) for one in found.images] == [
            ("b.png", pytest.approx(-0.5)),
            ("a.png", pytest.approx(0.1)),
        ]
        assert found.held

    def test_a_decision_that_changed_comes_first_and_does_not_hold(self, write):
        moved = {**SCORES, "a.png": (9.0, False), "c.png": (2.9, False)}
        found = diff(write("a", parity(SCORES)), write("b", parity(moved)))
        assert [(one.name, one.decision) for one in found.images] == [
            ("c.png", True),
            ("a.png", False),
        ]
        assert (found.decisions, found.held) == (1, False)

    def test_only_images_of_both_are_compared(self, write):
        other = {"b.png": (2.0, False), "d.png": (5.0, True)}
        assert diff(write("a", parity(SCORES)), write("b", parity(other))).shared == 1

    def test_images_that_were_renamed_or_are_gone_are_counted(self, write):
        first = write("a", parity(SCORES))
        other = {"b.png": (2.0, False), "d.png": (5.0, True)}
        found = diff(first, write("b", parity(other)))
        assert (found.only_before, found.only_after, found.exit_status) == (2, 1, 0)
        renamed = {f"new/{name}": score for name, score in SCORES.items()}
        found = diff(first, write("c", parity(renamed)))
        assert (found.shared, found.held, found.exit_status) == (0, False, 1)
        assert found.reasons[0].startswith("no image was verified by both: 3 by the first alone, 3")

    def test_a_check_that_is_no_longer_made(self, write):
        after = parity(SCORES)
        del after["checks"][0]
        found = diff(write("a", parity(SCORES)), write("b", after))
        assert found.worse == ("no longer checked: drift (before: largest drift 0.1, limit 1)",)
        assert (found.held, found.exit_status) == (False, 1)

    def test_a_score_that_is_no_longer_finite(self, write):
        after = parity({**SCORES, "b.png": ("NaN", False)})
        found = diff(write("a", parity(SCORES)), write("b", after))
        assert found.worse == ("1 images no longer have a finite score, such as b.png",)
        assert (found.shared, found.only_before) == (2, 0)

    def test_figures_that_changed(self, write):
        after = parity(SCORES)
        after["figures"] = {**after["figures"], "auroc": 0.9, "drift_max": 0.1000001}
        found = diff(write("a", parity(SCORES)), write("b", after))
        assert [(one.name, one.before, one.after) for one in found.figures] == [
            ("image AUROC", "0.9871", "0.9000")
        ]

    def test_figures_that_labels_masks_or_planted_defects_give(self, write):
        def content(shift):
            return parity(
                SCORES,
                evidence={
                    "kendall": 0.9 + shift,
                    "f1_max": {"reference": 0.9, "artifact": 0.8 + shift},
                    "aupro": {"reference": 0.7, "artifact": 0.6 + shift},
                    "mask_iou": 0.5 + shift,
                    "map_spearman": 0.95 + shift,
                },
                planted={
                    "images": 4,
                    "auroc": {"reference": 0.9, "artifact": 0.85 + shift},
                    "drift_max": 1.5 + shift,
                    "flips": 1,
                },
                size_mb=12.5 + shift,
            )

        found = diff(write("a", content(0.0)), write("b", content(0.03)))
        assert {one.name: (one.before, one.after) for one in found.figures} == {
            "Kendall's tau": ("0.9000", "0.9300"),
            "F1-max": ("0.8000", "0.8300"),
            "AUPRO": ("0.6000", "0.6300"),
            "mean rank correlation of maps": ("0.95000", "0.98000"),
            "mean IoU of masks": ("0.5000", "0.5300"),
            "AUROC on planted defects": ("0.8500", "0.8800"),
            "largest drift on planted defects": ("1.5", "1.53"),
            "size on disk, MB": ("12.5", "12.53"),
        }
        assert diff(write("a", content(0.0)), write("b", content(0.0))).figures == ()

    def test_limits_that_changed_are_shown_and_fail_nothing(self, write):
        limits = {"max_drift": 1.0, "max_flips": 0.02, "min_speedup": None}
        first = write("a", parity(SCORES, limits=limits))
        loose = {**limits, "max_drift": 10.0, "max_flips": None, "min_speedup": 2}
        found = diff(first, write("b", parity(SCORES, limits=loose)))
        assert [(one.name, one.before, one.after) for one in found.verified] == [
            ("limit of largest drift", "≤ 1 drift units", "≤ 10 drift units"),
            ("limit of flips", "≤ 2% of the images", "–"),
            ("limit of speed-up, lower end of its 95% interval", "–", "≥ 2×"),
        ]
        assert found.exit_status == 0

    def test_what_two_reports_are_of(self, write):
        of = {
            "target": "openvino:fp32",
            "source_name": "a.ckpt",
            "threshold": 1.5,
            "drift_unit_from": "40 images",
            "proven_on": "artifact",
            "sha256": {"manifest": 64 * "a", "reference": 64 * "b", "images": 64 * "c"},
        }
        other = {
            **of,
            "target": "openvino:int8",
            "threshold": 1.75,
            "drift_unit": 3.0,
            "sha256": {**of["sha256"], "images": 64 * "d"},
        }
        found = diff(write("a", parity(SCORES, **of)), write("b", parity(SCORES, **other)))
        assert [(one.name, one.before, one.after) for one in found.verified] == [
            ("target", "openvino:fp32", "openvino:int8"),
            ("threshold", "1.5", "1.75"),
            ("drift unit", "2", "3"),
            ("sha256 of the images", 16 * "c", 16 * "d"),
        ]
        # A report that an older version wrote has no digests, which is no change.
        of.pop("sha256")
        assert diff(write("a", parity(SCORES, **of)), write("b", parity(SCORES, **of))).held
        found = diff(write("a", parity(SCORES, **of)), write("b", parity(SCORES, **other)))
        assert "sha256 of the images" not in {one.name for one in found.verified}

    def test_where_and_with_what_it_was_verified(self, write):
        before = {"verified_at": "then", "load_before": 1.0, "vadexport": "0.1.0", "threads": 2}
        after = {"verified_at": "now", "load_before": 2.0, "vadexport": "0.2.0", "threads": 2}
        after["timm"] = "1.0.31"
        found = diff(
            write("a", parity(SCORES, environment=before)),
            write("b", parity(SCORES, environment=after)),
        )
        assert [(one.name, one.before, one.after) for one in found.verified] == [
            ("verified with vadexport", "0.1.0", "0.2.0"),
            ("verified with timm", "none", "1.0.31"),
        ]

    def test_a_check_that_no_longer_holds(self, write):
        after = parity(SCORES)
        after["checks"][0] = {"name": "drift", "held": False, "line": "largest drift 2, limit 1"}
        found = diff(write("a", parity(SCORES)), write("b", after))
        assert found.worse == ("largest drift 2, limit 1",)
        assert not found.held
        # One that fell short before as well is nothing new.
        assert diff(write("b", after), write("c", after)).held

    def test_a_check_that_is_new_and_falls_short(self, write):
        after = parity(SCORES)
        line = "speed-up 1.2, limit 2"
        after["checks"] = [*after["checks"], {"name": "speedup", "held": False, "line": line}]
        found = diff(write("a", parity(SCORES)), write("b", after))
        assert (found.worse, found.held) == ((line,), False)
        after["checks"][-1]["held"] = True
        assert diff(write("a", parity(SCORES)), write("b", after)).held

    def test_a_file_alone(self, write):
        first, second = write("a", parity(SCORES)), write("b", parity(SCORES))
        assert diff(first / "parity.json", second).shared == 3

    def test_latency(self, write):
        first, second = write("a", parity(SCORES)), write("b", parity(SCORES))
        for folder, median in ((first, 8.0), (second, 6.0)):
            latency = {
                "schema_version": 1,
                "artifact": {"median_ms": median},
                "speedup": {"ratio": 24 / median, "low": 23 / median, "high": 25 / median},
            }
            (folder / "latency.json").write_text(json.dumps(latency))
        assert [(one.name, one.before, one.after) for one in diff(first, second).figures] == [
            ("median latency, ms", "8", "6"),
            ("speed-up [95% interval]", "3 [2.88–3.12]", "4 [3.83–4.17]"),
        ]

    def test_latencies_of_two_machines_are_said_to_be(self, write):
        def measured(name, median, batch=1, **environment):
            latency = {
                "schema_version": 1,
                "artifact": {"median_ms": median},
                "batch": batch,
                "environment": {"openvino": "2026.2", "verified_at": name, **environment},
            }
            folder = write(name, parity(SCORES))
            (folder / "latency.json").write_text(json.dumps(latency))
            return folder

        first = measured("a", 8.0, processor="fast", threads=2, gpu={"name": "H200", "clock": 1})
        same = measured("b", 6.0, processor="fast", threads=2, gpu={"name": "H200", "clock": 2})
        assert diff(first, same).notes == ()
        newer = measured("c", 6.0, processor="fast", threads=2, gpu={"name": "H200"}, openvino="x")
        assert diff(first, newer).notes == ()  # that is what is compared
        (note,) = diff(first, measured("d", 6.0, 8, processor="slow", threads=4)).notes
        assert note.startswith("latency was not measured under like conditions, so its change is")
        assert note.endswith(": processor fast → slow; threads 2 → 4; images a call 1 → 8")
        shown = CliRunner().invoke(cli, ["diff", str(first), str(first.parent / "d")])
        assert f"note: {note}" in shown.stdout


class TestArtifacts:
    def test_what_was_built(self, artifact, artifacts):
        others = [one for one in artifacts.iterdir() if (one / "manifest.json").exists()]
        found = [diff(artifact, other) for other in others]
        names = {change.name for one in found for change in one.build}
        assert "target" in names
        assert any(name.startswith("file model.") for name in names)

    def test_of_the_same_artifact_is_nothing(self, artifact):
        assert diff(artifact, artifact).build == ()

    def test_without_a_report_nothing_was_compared(self, artifact, write, tmp_path):
        unverified = tmp_path / "unverified"
        shutil.copytree(artifact, unverified)
        shutil.rmtree(unverified / "report", ignore_errors=True)
        found = diff(unverified, unverified)
        assert (found.held, found.exit_status, len(found.reasons)) == (False, 2, 2)
        found = diff(write("a", parity(SCORES, checks=[])), unverified)
        assert (found.unverified, found.exit_status) == ((str(unverified),), 2)

    def test_a_report_of_another_artifact_proves_nothing_of_this_one(self, artifact, tmp_path):
        folder = shutil.copytree(artifact, tmp_path / "mine")
        shutil.rmtree(folder / "report", ignore_errors=True)
        (folder / "report").mkdir()
        report = folder / "report" / "parity.json"
        own = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
        report.write_text(json.dumps(parity(SCORES, sha256={"manifest": own})))
        assert diff(folder, folder).exit_status == 0
        report.write_text(json.dumps(parity(SCORES, sha256={"manifest": 64 * "a"})))
        found = diff(folder, folder)
        assert (found.exit_status, found.unverified) == (2, (str(folder), str(folder)))
        assert found.notes[0].startswith(f"the report in {folder} is of another artifact")


class TestFolders:
    """Of several artifacts, or of their reports."""

    @pytest.fixture
    def several(self, tmp_path):
        def make(name, **reports):
            for each, content in reports.items():
                folder = tmp_path / name / each
                folder.mkdir(parents=True)
                (folder / "parity.json").write_text(json.dumps(content))
            return tmp_path / name

        return make

    def test_those_of_one_name_are_compared(self, several):
        moved = parity({**SCORES, "c.png": (1.0, False)})
        first = several("a", x=parity(SCORES), y=parity(SCORES))
        found = diff_folders(first, several("b", x=parity(SCORES), y=moved))
        assert {name: one.decisions for name, one in found.pairs.items()} == {"x": 0, "y": 1}
        assert not found.held
        assert diff_folders(first, first).held

    def test_one_that_is_gone_does_not_hold_and_a_new_one_must_hold_its_checks(self, several):
        good = parity(SCORES, checks=[])
        first, second = several("a", x=good), several("b", x=good, y=good)
        found = diff_folders(first, second)
        assert (found.added, found.removed, found.held) == (("y",), (), True)
        assert diff_folders(second, first).removed == ("y",)
        assert not diff_folders(second, first).held
        (second / "y" / "parity.json").unlink()
        assert diff_folders(first, second).held  # nothing is left in that folder
        found = diff_folders(first, several("c", x=good, y=parity(SCORES)))
        assert (found.short, found.held) == (("y: 1 of 3 decisions flipped",), False)

    def test_several_and_one_are_not_compared(self, several, write):
        first = several("a", x=parity(SCORES), y=parity(SCORES))
        for pair in ((first, write("b", parity(SCORES))), (write("b", parity(SCORES)), first)):
            with pytest.raises(InputError, match=r"a holds several artifacts.*one of x, y"):
                diff_folders(*pair)

    def test_artifacts_that_were_built(self, artifacts):
        found = diff_folders(artifacts, artifacts)
        assert len(found.pairs) > 1
        assert all(not one.build for one in found.pairs.values())

    def test_the_command(self, several):
        first, second = (
            several("a", x=parity(SCORES), y=parity(SCORES)),
            several("b", x=parity(SCORES)),
        )
        words = ["diff", str(first), str(second)]
        shown = CliRunner().invoke(cli, words)
        assert shown.exit_code == 1
        assert shown.stdout.startswith("== x ==")
        assert shown.stdout.endswith("no longer there: y\n")
        found = json.loads(CliRunner().invoke(cli, [*words, "--json"]).stdout)
        assert (found["held"], found["removed"], list(found["artifacts"])) == (False, ["y"], ["x"])


class TestBadInput:
    @pytest.mark.parametrize(
        ("content", "told"),
        [
            (parity(SCORES, schema_version=2), "schema version 2, this vadexport reads 1"),
            ({}, "no schema_version"),
            ([], "no schema_version"),
            (parity(SCORES, images={}), "images is no list"),
        ],
    )
    def test_is_named(self, write, content, told):
        with pytest.raises(InputError, match=told):
            diff(write("a", content), write("b", parity(SCORES)))

    def test_no_json(self, write):
        folder = write("a", {})
        (folder / "parity.json").write_text("{")
        with pytest.raises(InputError, match=r"a/parity\.json is no JSON"):
            diff(folder, folder)

    def test_nothing_there(self, tmp_path):
        with pytest.raises(InputError, match="no does not exist"):
            diff(tmp_path / "no", tmp_path)
        with pytest.raises(InputError, match="neither an artifact nor a report"):
            diff(tmp_path, tmp_path)

    @given(figures=JSON, checks=JSON, images=st.lists(JSON, max_size=3), unit=JSON)
    def test_any_other_json_is_read_or_refused(
        self, tmp_path_factory, figures, checks, images, unit
    ):
        folder = tmp_path_factory.mktemp("any")
        content = parity(SCORES, figures=figures, checks=checks, images=images, drift_unit=unit)
        (folder / "parity.json").write_text(json.dumps(content))
        with suppress(InputError):
            diff(folder, folder)


class TestCommand:
    def run(self, *words):
        return CliRunner().invoke(cli, ["diff", *map(str, words)])

    def test_the_exit_status_says_whether_it_held(self, write):
        moved = {**SCORES, "c.png": (1.0, False)}
        first, second = write("a", parity(SCORES)), write("b", parity(moved))
        same = self.run(first, first)
        assert (same.exit_code, same.stdout) == (0, "0 of 3 decisions changed\n")
        other = self.run(first, second)
        assert other.exit_code == 1
        assert "c.png" in other.stdout
        assert other.stdout.endswith("1 of 3 decisions changed\n")
        assert other.stderr == "vadexport: fell short: 1 of 3 decisions changed\n"
        assert same.stderr == ""

    def test_json(self, write):
        folder = write("a", parity(SCORES))
        found = json.loads(self.run(folder, folder, "--json").stdout)
        assert found["held"] is True
        assert found["shared"] == 3
