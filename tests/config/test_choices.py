import pytest

from vadexport.config import SourceChoices
from vadexport.errors import InputError


def test_choices_go_before_others_one_by_one():
    stored = SourceChoices("file", resize=(2, 2), antialias=True, bgr=True, threshold=1.0)
    flags = SourceChoices(antialias=False, threshold=0.0, trust_pickle=True)
    assert flags.over(stored) == SourceChoices(
        "file", resize=(2, 2), antialias=False, bgr=True, threshold=0.0, trust_pickle=True
    )
    assert SourceChoices().over(stored) == stored
    assert flags.over(SourceChoices()) == flags


def test_a_choice_that_needs_another():
    with pytest.raises(InputError, match=r"^--no-antialias means nothing without --resize"):
        SourceChoices("d", antialias=False).spec()
    with pytest.raises(InputError, match=r"^--mean means nothing without --std"):
        SourceChoices("d", mean=(0.0, 0.0, 0.0)).spec()
    with pytest.raises(InputError, match="name a source"):
        SourceChoices().spec()
