import numpy as np
import pytest

from vadexport.building import suspects
from vadexport.building.suspects import warn_of_defects
from vadexport.calibration import CalibrationSet
from vadexport.contract import RAW_SCORE, ImageInput
from vadexport.images import ImageFile
from vadexport.images.colouring import save_png
from vadexport.listening import Listener
from vadexport.thresholds import Thresholds

THRESHOLDS = Thresholds(image=100.0, pixel=100.0, minimum=0.0, maximum=90.0, rule="given")


class Told(Listener):
    def __init__(self):
        self.warnings, self.notes, self.steps = [], [], []

    def warn(self, text):
        self.warnings.append(text)

    def note(self, text):
        self.notes.append(text)

    def step(self, *told):
        self.steps.append(told)


@pytest.fixture
def files(tmp_path):
    """Images of one gray level each: the levels 0, 10, … 190."""
    found = []
    for number in range(20):
        path = tmp_path / f"{number}.png"
        save_png(np.full((8, 8, 1), 10 * number, np.uint8), path)
        found.append(ImageFile(path, path.name, None))
    return found


class Reference:
    """Scores an image by its gray level."""

    def __init__(self):
        self.calls = []

    def __call__(self, call):
        self.calls.append(len(call))
        return {RAW_SCORE: call.mean(axis=(1, 2, 3), dtype=np.float32)}


def warned(chosen, checked, batch=1, thresholds=THRESHOLDS):
    told, reference = Told(), Reference()
    image_input = ImageInput(8, 8, 1, batch=batch)
    warn_of_defects(chosen, checked, reference, image_input, thresholds, told)
    return told, reference


@pytest.mark.parametrize("batch", [1, 4, None])
def test_names_what_scores_above_the_threshold(files, batch):
    chosen = CalibrationSet(tuple(files[:13]), tuple(files[18:]), 0)
    told, reference = warned(chosen, [180.0, 90.0], batch)
    (warning,) = told.warnings
    assert warning == (
        "3 of 15 normal images look like defects to the detector, with raw scores above its "
        "threshold of 100 (18.png 180, 12.png 120, 11.png 110): leave out those that are"
    )
    assert told.steps[-1] == ("look for defects", 13, 13)
    assert reference.calls == ([4] * 4 if batch == 4 else [1] * 13)


def test_the_threshold_itself_is_normal(files):
    told, _ = warned(CalibrationSet(tuple(files[:11]), (), 0), [])
    assert told.warnings == []


def test_a_detector_that_decides_by_its_normalised_score(files):
    # min-max: 0.75 is a quarter of the spread of 90 above 100.
    thresholds = Thresholds(**{**THRESHOLDS.to_json(), "label_above": 0.75})
    told, _ = warned(CalibrationSet(tuple(files[:14]), (), 0), [], thresholds=thresholds)
    assert "threshold of 122.5 (13.png 130)" in told.warnings[0]


def test_what_checks_is_not_scored_again(files):
    both = tuple(files[:3])
    told, reference = warned(CalibrationSet(both, both, 0), [0.0, 300.0, 20.0])
    assert reference.calls == []
    assert "1 of 3 normal images" in told.warnings[0]


def test_only_the_worst_are_named(files):
    told, _ = warned(CalibrationSet(tuple(files), (), 0), [])
    assert "9 of 20" in told.warnings[0]
    assert "(19.png 190, 18.png 180, 17.png 170, 16.png 160, 15.png 150, …)" in told.warnings[0]


def test_a_slow_reference_is_stopped(files, monkeypatch):
    monkeypatch.setattr(suspects, "_MOST_SECONDS", 0.0)
    told, reference = warned(CalibrationSet(tuple(files[::-1]), (), 0), [])
    assert reference.calls == [1]
    assert told.warnings[0].startswith(
        "1 of 1 normal images (19 more were not looked at, for the detector is slow) look like "
    )
    told, _ = warned(CalibrationSet(tuple(files[:11]), tuple(files[11:13]), 0), [0.0, 1.0])
    assert told.warnings == []
    (note,) = told.notes
    assert note == (
        "none of 3 normal images (10 more were not looked at, for the detector is slow) looks like "
        "a defect"
    )
