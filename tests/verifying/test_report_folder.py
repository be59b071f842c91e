"""Where a report may go: not among the files that a manifest names."""

import shutil

import pytest

from vadexport.artifact import open_artifact
from vadexport.errors import InputError
from vadexport.listening import Listener
from vadexport.verifying import VerifyOptions, verify

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def own(artifact, tmp_path):
    return shutil.copytree(artifact, tmp_path / "a")


@pytest.mark.parametrize("inside", [".", "proof", "proof/new"])
def test_not_into_the_artifact(own, checkpoint, images, inside):
    options = VerifyOptions(own, checkpoint, str(images), rounds=0, report=own / inside)
    with pytest.raises(InputError, match=r"^the report cannot go to ") as error:
        verify(options, Listener())
    assert f"in {own / 'report'}" in str(error.value)
    open_artifact(own)


@pytest.mark.parametrize("inside", ["report", "report/second", "../beside"])
def test_into_its_own_folder_of_reports_or_elsewhere(own, checkpoint, images, inside):
    options = VerifyOptions(own, checkpoint, str(images), rounds=0, report=own / inside)
    assert verify(options, Listener()).held
    assert (own / inside / "parity.json").exists()
    open_artifact(own)
