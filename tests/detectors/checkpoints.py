"""Checkpoints that are changed, and how they are refused."""

import json
import re

import pytest
from hypothesis import HealthCheck, settings
from safetensors import safe_open
from safetensors.torch import save_file

from vadexport.detectors.checkpoint import load_detector
from vadexport.errors import InputError, VadexportError

on_files = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def contents(path):
    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()["vadexport"]), state


def rewrite(path, change):
    """Write `path` again after `change(header, state)`."""
    header, state = contents(path)
    change(header, state)
    save_file(state, path, {"vadexport": json.dumps(header)})


def put(header, place, value):
    *folders, last = place.split(".")
    for folder in folders:
        header = header[folder]
    header[last] = value


def assert_refused(path, words=""):
    """One line that names the file and holds `words`."""
    with pytest.raises(InputError) as caught:
        load_detector(path)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert str(path) in text
    assert re.search(words, text), text
    return text


def assert_loads_or_refuses(path):
    try:
        load_detector(path)
    except VadexportError as error:
        refusal = str(error)
    else:
        refusal = "none"
    assert len(refusal.splitlines()) == 1
