import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from tests import check_links

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
GITLAB = yaml.safe_load((ROOT / "ci" / "gitlab.yml").read_text())[".vadexport"]


def documented():
    """What the YAML examples of docs/ci.md hold."""
    text = (ROOT / "docs" / "ci.md").read_text()
    return [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]


class TestDocumented:
    """The workflow of docs/ci.md, as far as it can be followed without GitHub."""

    @pytest.fixture
    def jobs(self):
        workflow, speed, _ = documented()
        return {**workflow["jobs"], **speed}

    def commands(self, step):
        """Words of each command of a step's shell."""
        lines = step.get("run", "").replace("\\\n", " ").splitlines()
        for part in (part for line in lines for part in re.split(r";|&&|\|\|", line)):
            words = shlex.split(part)
            while words and words[0] in ("if", "then", "else", "fi", "!"):
                words = words[1:]
            if words:
                yield words

    def all_commands(self, job):
        return [words for step in job["steps"] for words in self.commands(step)]

    def test_its_inputs_are_those_of_the_templates(self, jobs):
        (step,) = [one for one in jobs["artifact"]["steps"] if one.get("uses") == "./.vadexport"]
        assert step["with"].keys() <= ACTION["inputs"].keys()
        (_, _, gitlab) = documented()
        assert gitlab["detector"]["extends"] == ".vadexport"
        assert gitlab["detector"]["variables"].keys() <= GITLAB["variables"].keys()
        table = (ROOT / "docs" / "ci.md").read_text()
        assert all(f"`{name}`" in table for name in ACTION["inputs"])

    def test_every_command_is_there_when_it_runs(self, jobs):
        known, _ = check_links._commands()
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for name, job in jobs.items():
            programs = {"gh", "tar", "mkdir"}  # on GitHub's own runners
            folders = set()
            for step in job["steps"]:
                uses, given = step.get("uses", ""), step.get("with", {})
                if uses.startswith("actions/checkout"):
                    folders.add(given.get("path", "."))
                elif uses.startswith("actions/setup-python"):
                    programs.add("python")
                elif uses == "./.vadexport":
                    assert ".vadexport" in folders, name
                    assert "python" in programs, name
                    programs.add("vadexport")
                else:
                    assert not uses or uses.startswith("actions/download-artifact"), uses
                for words in self.commands(step):
                    assert words[0] in programs, (name, words)
                    if words[:4] == ["python", "-m", "pip", "install"]:
                        assert ".vadexport" in folders, name
                        constraints = words[words.index("--constraint") + 1]
                        assert (ROOT / constraints.removeprefix(".vadexport/")).is_file()
                        wanted = re.fullmatch(r"\./\.vadexport\[(.*)\]", words[-1]).group(1)
                        assert set(wanted.split(",")) <= extras["optional-dependencies"].keys()
                        programs.add("vadexport")
                    elif words[0] == "vadexport":
                        assert check_links._command_problem(words[1:], known) is None, words

    def test_its_shell_can_be_read(self, jobs):
        for step in (step for job in jobs.values() for step in job["steps"] if "run" in step):
            done = subprocess.run(
                [shutil.which("bash"), "-n", "-c", step["run"]],
                capture_output=True,
                text=True,
                check=False,
            )
            assert (done.returncode, done.stderr) == (0, "")

    def test_what_a_job_downloads_a_job_before_it_uploads(self, jobs):
        default = ACTION["inputs"]["upload"]["default"]
        uploads = {
            name: {
                step.get("with", {}).get("upload", default)
                for step in job["steps"]
                if step.get("uses") == "./.vadexport"
            }
            for name, job in jobs.items()
        }
        for job in jobs.values():
            before = [job["needs"]] if isinstance(job.get("needs"), str) else job.get("needs", [])
            for step in job["steps"]:
                if step.get("uses", "").startswith("actions/download-artifact"):
                    assert any(step["with"]["name"] in uploads[name] for name in before)

    def test_what_is_downloaded_of_a_release_a_job_releases(self, jobs):
        made = {}
        for name, job in jobs.items():
            archives = {}
            for words in self.all_commands(job):
                if words[:2] == ["tar", "-czf"]:
                    archives[words[2]] = words[3]
                elif words[:3] == ["gh", "release", "create"]:
                    assert job["permissions"]["contents"] == "write", name
                    made |= {word: archives[word] for word in words[4:] if word in archives}
        commands = [words for job in jobs.values() for words in self.all_commands(job)]
        asked = [
            words[words.index("--pattern") + 1]
            for words in commands
            if words[:3] == ["gh", "release", "download"]
        ]
        assert asked
        assert set(asked) <= made.keys()
        # It is compared where it is unpacked.
        (unpacked,) = [words for words in commands if words[:2] == ["tar", "-xzf"]]
        place = f"{unpacked[unpacked.index('-C') + 1]}/{made[unpacked[2]]}"
        (compared,) = [words for words in commands if words[:2] == ["vadexport", "diff"]]
        assert compared[2] == place

    def test_a_shared_runner_measures_no_speed(self, jobs):
        shared = [job for job in jobs.values() if job["runs-on"] == "ubuntu-latest"]
        given = [step["with"] for job in shared for step in job["steps"] if "with" in step]
        options = [one["verify-options"] for one in given if "verify-options" in one]
        assert options
        assert all("--rounds 0" in one for one in options)
