import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
GITLAB = yaml.safe_load((ROOT / "ci" / "gitlab.yml").read_text())[".vadexport"]


class Pipeline:
    """The shell of action.yml and ci/gitlab.yml, run as their runners do."""

    def __init__(self, folder, checkpoint, images):
        self.folder = folder
        self.inputs = {
            "source": str(checkpoint),
            "calibration": str(images / "good"),
            "images": str(images),
            "output": "artifact",
        }
        self.more = {}
        self.output, self.summary = folder / "output", folder / "summary.md"
        self.output.touch()
        self.summary.touch()

    def environment(self, values):
        binaries = str(Path(sys.executable).parent)
        return {
            **os.environ,
            "PATH": os.pathsep.join((binaries, os.environ["PATH"])),
            "GITHUB_OUTPUT": str(self.output),
            "GITHUB_STEP_SUMMARY": str(self.summary),
            "RUNNER_TEMP": str(self.folder),
            **values,
            **self.more,
        }

    def pretend(self, build, verify, report="report"):
        """From now on `vadexport` is a program whose commands end with these statuses."""
        written = f'echo "## of verify" > artifact/{report}/summary.md' if report else ":"
        folder = self.folder / "pretending"
        folder.mkdir()
        program = folder / "vadexport"
        program.write_text(f"""#!/bin/sh
if [ "$1" = build ]; then
  mkdir -p artifact/report artifact/several/report
  echo "vadexport: 50% <of> build" >&2
  exit {build}
fi
{written}
echo "vadexport: of verify" >&2
exit {verify}
""")
        program.chmod(0o755)
        self.more = {"PATH": os.pathsep.join((str(folder), os.environ["PATH"]))}

    def step(self, name, **given):
        """Run a step of the action; every value of its environment is an input."""
        (step,) = [one for one in ACTION["runs"]["steps"] if one["name"] == name]
        defaults = {key: one["default"] for key, one in ACTION["inputs"].items()}
        inputs = {**defaults, **self.inputs, **given}
        known = {
            "github.action_path": str(ROOT),
            **{f"inputs.{key}": value for key, value in inputs.items()},
            **{f"steps.build.outputs.{key}": value for key, value in self.outputs().items()},
        }
        values = {
            key: known[re.fullmatch(r"\$\{\{ ([\w.-]+) \}\}", value).group(1)]
            for key, value in step["env"].items()
        }
        if name == "Install vadexport":
            values |= self.stand_in("python", "vadexport")
        # As GitHub runs `shell: bash`.
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        return self.run(command, values)

    def stand_in(self, *names):
        """Programs that only write their arguments, one a line, and go before those of PATH."""
        folder = self.folder / "bin"
        folder.mkdir()
        for name in names:
            (folder / name).write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
            (folder / name).chmod(0o755)
        return {"PATH": os.pathsep.join((str(folder), os.environ["PATH"]))}

    def gitlab_installs(self, **given):
        """Run what the job's script installs by."""
        variables = {key: str(value) for key, value in GITLAB["variables"].items()}
        values = {**variables, **self.stand_in("python"), **given}
        return self.run(["sh", "-e", "-c", GITLAB["script"][0]], values)

    def gitlab(self, **given):
        """Run the job's script, but for the installation."""
        script = "\n".join(GITLAB["script"][1:])
        variables = {key: str(value) for key, value in GITLAB["variables"].items()}
        values = {
            **variables,
            "VADEXPORT_SOURCE": self.inputs["source"],
            "VADEXPORT_CALIBRATION": self.inputs["calibration"],
            "VADEXPORT_IMAGES": self.inputs["images"],
            **given,
        }
        return self.run(["sh", "-e", "-c", script], values)

    def run(self, command, values):
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment(values),
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )

    def outputs(self):
        return dict(line.split("=", 1) for line in self.output.read_text().splitlines())


@pytest.fixture
def pipeline(tmp_path, checkpoint, images):
    return Pipeline(tmp_path, checkpoint, images)


class TestInstalling:
    """The arguments that pip gets."""

    def test_the_action_installs_its_own_version(self, pipeline):
        done = pipeline.step("Install vadexport", extras="openvino")
        constraints = ["--constraint", f"{ROOT}/constraints.txt"]
        words = ["-m", "pip", "install", "--disable-pip-version-check", "--quiet", *constraints]
        assert done.stdout.splitlines() == [*words, f"{ROOT}[openvino]", "doctor"], done.stderr
        assert (ROOT / "constraints.txt").is_file()

    def test_the_action_installs_what_it_is_given(self, pipeline):
        done = pipeline.step("Install vadexport", install="a wheel.whl")
        assert done.stdout.splitlines()[-2:] == ["a wheel.whl", "doctor"]
        assert "--constraint" not in done.stdout

    def test_gitlab_installs_from_a_git_address_or_a_path(self, pipeline):
        address = "git+https://gitlab.example.com/a/vadexport.git@v1.0.0"
        done = pipeline.gitlab_installs(VADEXPORT_INSTALL=address)
        assert done.stdout.splitlines()[-1] == f"vadexport[openvino,report] @ {address}"

    def test_gitlab_installs_the_tested_versions_of_a_checkout(self, pipeline):
        done = pipeline.gitlab_installs(VADEXPORT_INSTALL=str(ROOT), VADEXPORT_EXTRAS="openvino")
        constraint = ["--constraint", f"{ROOT}/constraints.txt"]
        assert done.stdout.splitlines()[-3:] == [*constraint, f"{ROOT}[openvino]"]

    def test_gitlab_must_be_told_from_where(self, pipeline):
        done = pipeline.gitlab_installs()
        assert (done.returncode, done.stdout) == (2, "")
        assert "set VADEXPORT_INSTALL" in done.stderr


class TestAction:
    @pytest.mark.slow
    def test_builds_verifies_and_writes_the_summary(self, pipeline):
        targets = "openvino:fp32 onnxruntime:fp32"
        built = pipeline.step("Build", targets=targets)
        assert built.returncode == 0, built.stderr
        assert pipeline.outputs() == {"artifact": "artifact", "status": "0"}
        verified = pipeline.step("Verify", **{"verify-options": "--rounds 0"})
        assert verified.returncode == 0, verified.stderr
        assert pipeline.outputs()["held"] == "true"
        summary = pipeline.summary.read_text()
        assert summary.count("## ✓") == 2
        assert "::error" not in verified.stdout

    @pytest.mark.slow
    def test_fails_with_the_line_that_says_why(self, pipeline):
        assert pipeline.step("Build").returncode == 0
        options = "--rounds 0 --max-drift 0"
        verified = pipeline.step("Verify", **{"verify-options": options})
        assert verified.returncode == 1
        assert pipeline.outputs()["held"] == "false"
        (line,) = [one for one in verified.stdout.splitlines() if one.startswith("::error")]
        told = r"vadexport: fell short: openvino:fp32: .*largest drift .*, limit 0(; |$)"
        assert re.match(rf"::error title=vadexport verify::{told}", line)
        last = verified.stderr.splitlines()[-1]
        assert line.partition("verify::")[2].replace("%25", "%") == last
        assert "## ✗" in pipeline.summary.read_text()

    @pytest.mark.parametrize(
        ("build", "verify", "status"),
        [(0, 0, 0), (1, 0, 1), (1, 4, 1), (0, 1, 1), (0, 4, 4), (1, 2, 2), (1, 3, 3)],
    )
    def test_ends_as_build_with_verify_does(self, pipeline, build, verify, status):
        pipeline.pretend(build, verify)
        built = pipeline.step("Build")
        assert built.returncode == 0, built.stderr
        verified = pipeline.step("Verify")
        assert verified.returncode == status
        assert pipeline.outputs()["held"] == ("false" if status else "true")
        said = built.stdout + verified.stdout
        assert ("::error title=vadexport build::vadexport: 50%25 <of> build" in said) == bool(build)
        assert ("::error title=vadexport verify::vadexport: of verify" in said) == bool(verify)
        heard = build and verify not in (2, 3)
        reason = "vadexport: 50% <of> build" if heard else "vadexport: of verify"
        assert verified.stderr.splitlines()[-1] == reason
        heading = "## ✗ vadexport build\n\n    vadexport: 50% <of> build\n\n" if build else ""
        assert pipeline.summary.read_text() == f"{heading}## of verify\n"

    def test_a_verification_without_a_report_says_why_on_the_jobs_page(self, pipeline):
        pipeline.pretend(0, 3, report=None)
        assert pipeline.step("Build").returncode == 0
        assert pipeline.step("Verify").returncode == 3
        expected = "## ✗ vadexport verify\n\n    vadexport: of verify\n\n"
        assert pipeline.summary.read_text() == expected

    def test_reports_of_several_artifacts_are_enough(self, pipeline):
        pipeline.pretend(0, 1, report="several/report")
        assert pipeline.step("Build").returncode == 0
        assert pipeline.step("Verify").returncode == 1
        assert pipeline.summary.read_text() == "## of verify\n"

    def test_a_build_that_failed_is_not_verified(self, pipeline):
        pipeline.pretend(4, 0)
        assert pipeline.step("Build").returncode == 4
        assert "50% <of> build" in pipeline.summary.read_text()

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("verify-options", "--rounds 0 --report elsewhere"),
            ("verify-options", "--report=elsewhere"),
            ("build-options", "-o elsewhere"),
            ("build-options", "--batch 1\n--output=elsewhere"),
        ],
    )
    def test_options_that_lead_the_report_elsewhere_are_refused(self, pipeline, name, options):
        done = pipeline.step("Check", **{name: options})
        assert done.returncode == 2
        assert done.stdout.startswith("::error title=vadexport::-")
        assert f"in {name}: " in done.stderr
        fine = {"build-options": "--no-pass mahalanobis", "verify-options": "--rounds 0 --repeat 1"}
        assert pipeline.step("Check", **fine).returncode == 0

    def test_wrong_input_fails_the_build_with_its_line(self, pipeline):
        built = pipeline.step("Build", source="no such file.ckpt")
        assert built.returncode == 2
        (line,) = [one for one in built.stdout.splitlines() if one.startswith("::error")]
        assert "cannot read no such file.ckpt" in line

    def test_an_input_with_spaces_and_quotes_is_one_word(self, pipeline):
        built = pipeline.step("Build", source='a\'b "c" $(touch pwned).ckpt')
        assert built.returncode == 2
        assert not (pipeline.folder / "pwned").exists()

    def test_no_input_goes_into_the_shell_unquoted(self):
        for step in ACTION["runs"]["steps"]:
            assert "${{" not in step.get("run", "")

    def test_every_input_is_used_and_described(self):
        text = (ROOT / "action.yml").read_text()
        for name, described in ACTION["inputs"].items():
            assert f"inputs.{name}" in text, name
            assert described["description"], name


class TestGitLab:
    @pytest.mark.slow
    def test_builds_and_verifies(self, pipeline):
        done = pipeline.gitlab(VADEXPORT_VERIFY_OPTIONS="--rounds 0")
        assert done.returncode == 0, done.stderr
        folder = pipeline.folder / "artifact"
        (pattern, _) = GITLAB["artifacts"]["reports"]["junit"]
        report = Path(str(pattern).replace("$VADEXPORT_OUTPUT", str(folder)))
        assert ET.parse(report).getroot().get("failures") == "0"

    @pytest.mark.slow
    def test_fails_where_a_check_falls_short(self, pipeline):
        options = "--rounds 0 --max-drift 0"
        done = pipeline.gitlab(VADEXPORT_VERIFY_OPTIONS=options)
        assert done.returncode == 1
        assert "largest drift" in done.stdout

    @pytest.mark.parametrize(
        ("build", "verify", "status"),
        [(0, 0, 0), (1, 0, 1), (1, 4, 1), (0, 1, 1), (0, 4, 4), (1, 2, 2), (1, 3, 3)],
    )
    def test_ends_as_build_with_verify_does(self, pipeline, build, verify, status):
        pipeline.pretend(build, verify)
        done = pipeline.gitlab()
        assert done.returncode == status, done.stderr
        assert done.stdout == "## of verify\n"
        heard = build and verify not in (2, 3)
        last = "vadexport: 50% <of> build" if heard else "vadexport: of verify"
        assert done.stderr.splitlines()[-1] == last

    @pytest.mark.parametrize(
        "given",
        [
            {"VADEXPORT_VERIFY_OPTIONS": "--rounds 0 --report elsewhere"},
            {"VADEXPORT_BUILD_OPTIONS": "--output=elsewhere"},
        ],
    )
    def test_options_that_lead_the_report_elsewhere_are_refused(self, pipeline, given):
        done = pipeline.gitlab_installs(VADEXPORT_INSTALL=str(ROOT), **given)
        assert (done.returncode, done.stdout) == (2, "")
        assert next(iter(given)) in done.stderr

    def test_fails_where_the_build_does(self, pipeline):
        done = pipeline.gitlab(VADEXPORT_SOURCE="none.ckpt")
        assert done.returncode == 2
        assert not (pipeline.folder / "artifact").exists()
