import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vadexport.reporting.axes import LARGEST, Axis, nice_ticks

VALUES = st.lists(st.floats(-LARGEST, LARGEST), min_size=1, max_size=30)


def read(label):
    return float(label.replace("−", "-"))


class TestNiceTicks:
    @pytest.mark.parametrize(
        ("low", "high", "labels"),
        [
            (0, 1, ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
            (-3, 3, ["−2", "0", "2"]),
            (0.97, 1.02, ["0.97", "0.98", "0.99", "1.00", "1.01", "1.02"]),
            (0, 3e-6, ["0", "1e−6", "2e−6", "3e−6"]),
            (120000, 180000, ["1.2e5", "1.4e5", "1.6e5", "1.8e5"]),
            (3, 97, ["20", "40", "60", "80"]),
        ],
    )
    def test_labels(self, low, high, labels):
        most = 5 if (low, high) != (-3, 3) else 4
        assert [label for _, label in nice_ticks(low, high, most)] == labels

    @given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(3, 8))
    def test_any_range(self, low, width, most):
        high = low + width * max(1.0, abs(low))
        ticks = nice_ticks(low, high, most)
        values = [value for value, _ in ticks]
        assert 1 <= len(ticks) <= most + 1
        rounding = 1e-9 * (high - low)
        assert all(low - rounding <= value <= high + rounding for value in values)
        steps = np.diff(values)
        if len(steps):
            step = steps[0]
            np.testing.assert_allclose(steps, step, rtol=1e-6)
            mantissa = step / 10 ** math.floor(math.log10(step * 1.000001))
            assert min(abs(mantissa - nice) for nice in (1, 2, 5)) < 1e-5
            # What a label says is nearer to its tick than to any other.
            assert all(abs(read(label) - value) < step / 100 for value, label in ticks)


class TestLinear:
    def test_is_linear(self):
        axis = Axis.linear(np.array([0.0, 10.0]), (100, 200))
        assert axis.at(5) == pytest.approx(150)
        assert axis.at(7) - axis.at(5) == pytest.approx(axis.at(3) - axis.at(1))
        assert 100 < axis.at(0) < axis.at(10) < 200

    @given(VALUES, st.floats(-LARGEST, LARGEST), st.sampled_from([None, 0.0]))
    @example([0.0], 0.0, 0.0)
    @example([5e-324], 0.0, None)
    @example([1.0, 1.0000000001], 1.0, None)
    @example([-LARGEST, LARGEST], 0.0, None)
    def test_any_values(self, values, line, origin):
        axis = Axis.linear(np.array(values), (300, 20), origin=origin, lines=[line])
        assert axis.low < axis.high
        places = [axis.at(value) for value in (*values, *(value for value, _ in axis.ticks))]
        assert all(20 <= place <= 300 for place in places)
        assert origin is None or axis.holds(0)
        assert axis.ticks

    def test_far_off_values_do_not_squeeze_the_others(self):
        values = np.append(np.linspace(1, 2, 50), 1e9)
        axis = Axis.linear(values, (0, 100))
        assert not axis.holds(1e9)
        assert axis.at(1e9) == 100
        assert axis.at(2) - axis.at(1) > 80

    def test_the_anomalous_are_not_far_off(self):
        values = np.append(np.random.default_rng(0).normal(1, 0.1, 100), [2.5, 3.0])
        assert Axis.linear(values, (0, 100)).holds(3.0)

    def test_lines_near_and_far(self):
        values = np.linspace(1, 2, 50)
        assert Axis.linear(values, (0, 100), lines=[2.8]).holds(2.8)
        assert not Axis.linear(values, (0, 100), lines=[5.0]).holds(5.0)
        assert not Axis.linear(values, (0, 100), lines=[2.8, 5.0]).holds(2.8)

    def test_labels_have_room(self):
        axis = Axis.linear(np.array([1.00001, 1.00005]), (0, 200))
        assert sum(len(label) for _, label in axis.ticks) * 6 < 200


class TestLogarithmic:
    def test_equal_ratios_are_equal_steps(self):
        axis = Axis.logarithmic(np.array([1.0, 1000.0]), (0, 100))
        assert axis.at(10) - axis.at(1) == pytest.approx(axis.at(1000) - axis.at(100))

    @given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=20))
    @example([5.0])
    @example([5.0, 5.01])
    @example([1000000000.0, 784812488.0781877])
    def test_any_values(self, values):
        axis = Axis.logarithmic(np.array(values), (10, 400))
        ticks = [value for value, _ in axis.ticks]
        assert 1 <= len(ticks) <= 12
        assert all(10 <= axis.at(value) <= 400 for value in (*values, *ticks))
        for value, label in axis.ticks:
            assert read(label) == pytest.approx(value, rel=0.01)
