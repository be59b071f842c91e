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


def documented():
    """What the YAML examples of docs/ci.md hold."""
    text = (ROOT / "docs" / "ci.md").read_text()
    return [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]


def test_the_documented_workflow_is_one_of_this_action():
    workflow, speed, gitlab = documented()
    steps = workflow["jobs"]["artifact"]["steps"]
    (step,) = [one for one in steps if one.get("uses") == "./.vadexport"]
    assert step["with"].keys() <= ACTION["inputs"].keys()
    assert any(one.get("with", {}).get("path") == ".vadexport" for one in steps)
    (download,) = [one for one in speed["speed"]["steps"] if "download" in one.get("uses", "")]
    assert download["with"]["name"] == ACTION["inputs"]["upload"]["default"]
    assert gitlab["detector"]["extends"] == ".vadexport"
    assert gitlab["detector"]["variables"].keys() <= GITLAB["variables"].keys()
    table = (ROOT / "docs" / "ci.md").read_text()
    assert all(f"`{name}`" in table for name in ACTION["inputs"])


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
        }

    def step(self, name, **given):
        """Run a step of the action; every value of its environment is an input."""
        (step,) = [one for one in ACTION["runs"]["steps"] if one["name"] == name]
        defaults = {key: one["default"] for key, one in ACTION["inputs"].items()}
        inputs = {**defaults, **self.inputs, **given}
        values = {
            key: inputs[re.fullmatch(r"\$\{\{ inputs\.([\w-]+) \}\}", value).group(1)]
            for key, value in step["env"].items()
        }
        # As GitHub runs `shell: bash`.
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        return self.run(command, values)

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


class TestAction:
    @pytest.mark.slow
    def test_builds_verifies_and_writes_the_summary(self, pipeline):
        targets = "openvino:fp32 onnxruntime:fp32"
        built = pipeline.step("Build", targets=targets)
        assert built.returncode == 0, built.stderr
        assert pipeline.outputs() == {"artifact": "artifact"}
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
        assert re.match(r"::error title=vadexport verify::largest drift .*, limit 0$", line)
        assert "## ✗" in pipeline.summary.read_text()

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

    def test_fails_where_the_build_does(self, pipeline):
        done = pipeline.gitlab(VADEXPORT_SOURCE="none.ckpt")
        assert done.returncode == 2
        assert not (pipeline.folder / "artifact").exists()
