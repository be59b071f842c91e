"""What every family's configuration refuses."""

import dataclasses
import math
import typing

import pytest

from vadexport.detectors.families import FAMILIES
from vadexport.detectors.stored_config import as_json, read_config
from vadexport.errors import InputError


def config_of(name):
    return FAMILIES[name].load(FAMILIES[name].config)


FLOATS = [
    (name, field)
    for name in FAMILIES
    for field, kind in typing.get_type_hints(config_of(name)).items()
    if kind is float
]


def test_families_have_floats():
    assert {name for name, _ in FLOATS} == set(FAMILIES)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("name", "field"), FLOATS)
def test_floats_that_are_not_finite_are_refused(name, field, value):
    with pytest.raises(InputError, match=r"is in [\[(]0|are in|between"):
        config_of(name)(**{field: value})
    stored = {**as_json(config_of(name)()), field: value}
    with pytest.raises(InputError):
        read_config(config_of(name), stored, name)


@pytest.mark.parametrize("seed", [-1, 2**63, -(2**63), 10**30])
@pytest.mark.parametrize("name", FAMILIES)
def test_seeds_outside_what_all_generators_take_are_refused(name, seed):
    with pytest.raises(InputError, match=rf"the seed is in 0 … 2⁶³ − 1, not {seed}$"):
        config_of(name)(seed=seed)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_largest_seed_is_taken(name):
    config = config_of(name)(seed=2**63 - 1)
    assert read_config(config_of(name), as_json(config), name) == config


COUNTS = [
    (name, field.name)
    for name in FAMILIES
    for field in dataclasses.fields(config_of(name))
    if field.name in {"steps", "teacher_steps", "batch_size"}
]


@pytest.mark.parametrize(("name", "field"), COUNTS)
def test_training_takes_steps_and_images(name, field):
    with pytest.raises(InputError, match="at least one step and one image"):
        config_of(name)(**{field: 0})
