import pytest

from vadexport.detectors.folds import fold_of


@pytest.mark.parametrize(
    ("count", "folds"),
    [(1, [0]), (3, [0, 1, 2]), (5, [0, 1, 2, 3, 4]), (7, [0, 1, 2, 3, 4, 0, 1])],
)
def test_folds_take_turns(count, folds):
    assert fold_of(count).tolist() == folds


@pytest.mark.parametrize("count", [6, 23, 100])
def test_of_many_images_a_fifth_is_held_out_at_once(count):
    sizes = fold_of(count).bincount()
    assert len(sizes) == 5
    assert sizes.max() - sizes.min() <= 1
