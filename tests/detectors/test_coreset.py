from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vadexport.detectors.coreset import coreset_indices


def distances_to(points, index):
    return ((points - points[index]) ** 2).sum(axis=1)


def greedy(points, count):
    """One pick at a time, in float64."""
    points = points.double().numpy()
    chosen = [int(((points - points.mean(axis=0)) ** 2).sum(axis=1).argmax())]
    far = distances_to(points, chosen[0])
    while len(chosen) < count:
        far[chosen] = -1
        chosen.append(int(far.argmax()))
        far = np.minimum(far, distances_to(points, chosen[-1]))
    return chosen


def assert_greedy(points, chosen, eps):
    """Each pick is the farthest point, up to what float32 can tell apart; holds with ties too."""
    points = points.double().numpy()
    assert len(set(chosen)) == len(chosen)
    centred = points - points.mean(axis=0)
    norms = (centred**2).sum(axis=1)
    rounding = 8 * points.shape[1] * eps * norms.max()
    assert norms[chosen[0]] >= norms.max() - rounding
    far = distances_to(points, chosen[0])
    for pick in chosen[1:]:
        assert far[pick] >= far.max() - rounding
        far = np.minimum(far, distances_to(points, pick))


def radius(points, chosen):
    exact = "donot_use_mm_for_euclid_dist"
    distances = torch.cdist(points.double(), points[chosen].double(), compute_mode=exact)
    return distances.amin(dim=1).max().item()


@pytest.mark.parametrize(
    ("n", "width", "count"),
    [(1, 3, 1), (2, 3, 2), (40, 2, 40), (500, 16, 50), (1024, 5, 700), (1026, 5, 1026)],
)
def test_picks_are_those_of_one_at_a_time(n, width, count):
    points = torch.randn(n, width, generator=torch.Generator().manual_seed(n))
    assert coreset_indices(points, count).tolist() == greedy(points, count)


def test_picks_are_those_of_one_at_a_time_over_many_batches():
    points = torch.randn(4000, 12, generator=torch.Generator().manual_seed(1))
    assert coreset_indices(points, 1500).tolist() == greedy(points, 1500)


def test_points_far_from_the_origin_are_told_apart():
    points = torch.rand(300, 4, generator=torch.Generator().manual_seed(2)) + 1000
    assert coreset_indices(points, 100).tolist() == greedy(points, 100)


@given(
    n=st.integers(1, 80),
    width=st.integers(1, 6),
    part=st.floats(0, 1),
    levels=st.integers(1, 50),
    seed=st.integers(0, 999),
)
@settings(deadline=None)
def test_every_pick_is_the_farthest_and_none_is_taken_twice(n, width, part, levels, seed):
    rng = np.random.default_rng(seed)
    points = torch.from_numpy(rng.integers(0, levels, (n, width)).astype(np.float32))
    count = max(1, round(part * n))
    chosen = coreset_indices(points, count)
    assert chosen.shape == (count,)
    assert chosen.dtype == torch.int64
    assert_greedy(points, chosen.tolist(), np.finfo(np.float32).eps)


@pytest.mark.parametrize("n", [2, 7, 1100, 2500])
def test_of_equal_points_each_is_taken_once(n):
    chosen = coreset_indices(torch.full((n, 3), 0.1), n)
    assert sorted(chosen.tolist()) == list(range(n))


def test_duplicates_come_last():
    few = torch.randn(20, 3, generator=torch.Generator().manual_seed(3)) * 10
    chosen = coreset_indices(few.repeat(60, 1), 20)
    assert sorted(index % 20 for index in chosen.tolist()) == list(range(20))


def test_a_smaller_coreset_is_the_beginning_of_a_larger():
    points = torch.randn(2500, 8, generator=torch.Generator().manual_seed(4))
    whole = coreset_indices(points, 1200).tolist()
    for count in (1, 2, 37, 1000, 1100):
        assert coreset_indices(points, count).tolist() == whole[:count]


def test_the_covering_radius_falls():
    points = torch.randn(600, 6, generator=torch.Generator().manual_seed(5))
    chosen = coreset_indices(points, 600)
    radii = [radius(points, chosen[:count]) for count in (1, 5, 25, 125, 599, 600)]
    assert all(after < before for before, after in pairwise(radii))
    assert radii[-1] == 0


class TestProjection:
    def test_128_dimensions_are_taken_as_they_are(self):
        points = torch.randn(400, 128, generator=torch.Generator().manual_seed(6))
        first, second = (coreset_indices(points, 60, seed=seed).tolist() for seed in (0, 1))
        assert first == second == greedy(points, 60)

    def test_more_are_projected_at_random_by_the_seed(self):
        points = torch.randn(400, 129, generator=torch.Generator().manual_seed(6))
        picks = [coreset_indices(points, 60, seed=seed).tolist() for seed in (0, 0, 1)]
        assert picks[0] == picks[1]
        assert picks[0] != picks[2]
        assert picks[0] != greedy(points, 60)

    def test_leaves_the_global_generator_alone(self):
        torch.manual_seed(8)
        expected = torch.rand(1)
        torch.manual_seed(8)
        coreset_indices(torch.randn(50, 200, generator=torch.Generator()), 10)
        assert torch.equal(torch.rand(1), expected)

    def test_covers_nearly_as_well_as_the_full_space(self):
        corners = torch.randn(30, 512, generator=torch.Generator().manual_seed(7))
        noise = torch.randn(900, 512, generator=torch.Generator().manual_seed(8))
        points = corners.repeat(30, 1) + 0.1 * noise
        chosen = coreset_indices(points, 30)
        # One of each cluster: clusters are some 32 apart and 5 wide.
        assert len({index % 30 for index in chosen.tolist()}) == 30
        assert radius(points, chosen) < 1.2 * radius(points, torch.tensor(greedy(points, 30)))


def test_progress_ends_at_the_count():
    told = []
    points = torch.randn(3000, 4, generator=torch.Generator().manual_seed(9))
    coreset_indices(points, 1500, progress=lambda done, total: told.append((done, total)))
    done = [each for each, _ in told]
    assert {total for _, total in told} == {1500}
    assert done == sorted(done)
    assert done[-1] == 1500
