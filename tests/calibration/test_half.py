import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.nn import functional

from tests.passes.half_graphs import graph, names, run
from vadexport.calibration import halve
from vadexport.calibration.half import largest_values
from vadexport.errors import UnfitError
from vadexport.passes.half_rounding import rounded_as_half

RNG = np.random.default_rng(11)
CALLS = [RNG.normal(size=(2, 3, 8, 8)).astype(np.float32) for _ in range(4)]


class Told(list):
    def __call__(self, done, total):
        self.append((done, total))


def chain(layers, scales, head="raw_score = ReduceMean<keepdims = 0>(last, axes)"):
    """Convolutions one behind the other, each with a bias so large as it is given."""
    turns = [np.linalg.qr(RNG.normal(size=(3, 3)))[0] for _ in range(layers)]  # nothing grows
    weights = {f"w{n}": turn.reshape(3, 3, 1, 1) for n, turn in enumerate(turns)}
    weights |= {f"b{n}": np.full(3, scales.get(n, 0.0)) for n in range(layers)}
    weights |= {f"u{n}": np.full((1, 3, 1, 1), -scales.get(n, 0.0)) for n in range(layers)}
    nodes, last = [], "image"
    for n in range(layers):
        nodes.append(f"c{n} = Conv({last}, w{n}, b{n})")
        nodes.append(f"a{n} = Add(c{n}, u{n})")
        last = f"a{n}"
    nodes += [f"last = Identity({last})", head]
    return graph(
        "float[2,3,8,8] image", "\n".join(nodes), "float[2] raw_score", **weights, axes=[1, 2, 3]
    )


def network_of(model):
    return names(model) - {"raw_score"}


def halved(model, tmp_path, allowed, calls=CALLS, network=None):
    onnx.save(model, tmp_path / "float.onnx")
    told = Told()
    plan = halve(
        *(tmp_path / "float.onnx", tmp_path / "half.onnx", network or network_of(model)),
        *(calls, (allowed, np.inf), told),
    )
    return plan, onnx.load(tmp_path / "half.onnx"), told


def drift(model, half, calls=CALLS):
    """Largest move of a score, under float16 storage."""
    moves = [
        run(rounded_as_half(half), image=call)["raw_score"] - run(model, image=call)["raw_score"]
        for call in calls
    ]
    return float(np.abs(moves).max())


class TestLargestValues:
    @pytest.fixture
    def model(self):
        return graph(
            "float[2,3,8,8] image",
            """
            c = Conv(image, w)
            r = Relu(c)
            raw_score = ReduceMean<keepdims = 0>(r, axes)
            """,
            "float[2] raw_score",
            w=RNG.normal(size=(4, 3, 3, 3)),
            axes=[1, 2, 3],
        )

    def test_are_pytorchs(self, model):
        weight = torch.from_numpy(onnx.numpy_helper.to_array(model.graph.initializer[0]).copy())
        images = torch.from_numpy(np.stack(CALLS)).flatten(0, 1)
        c = functional.conv2d(images, weight)
        found = largest_values(model, ["image", "c", "r"], CALLS)
        assert found == pytest.approx(
            {
                "image": float(images.abs().max()),
                "c": float(c.abs().max()),
                "r": float(c.relu().max()),
            },
            rel=1e-5,
        )

    def test_take_the_largest_magnitude_of_any_call(self, model):
        calls = [np.zeros((2, 3, 8, 8), np.float32) for _ in range(3)]
        calls[1][1, 2, 3, 4] = -7
        assert largest_values(model, ["image"], calls) == {"image": 7.0}

    def test_constants_are_left_out(self, model):
        assert set(largest_values(model, ["w", "c"], CALLS)) == {"c"}
        assert largest_values(model, ["w"], CALLS) == {}
        assert largest_values(model, [], CALLS) == {}

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_what_is_no_number_counts_as_infinity(self, model, value):
        call = CALLS[0].copy()
        call[0, 0, 0, 0] = value
        found = largest_values(model, ["image", "c"], [CALLS[1], call, CALLS[2]])
        assert found == {"image": np.inf, "c": np.inf}

    def test_leaves_the_model_alone(self, model):
        before = model.SerializeToString(deterministic=True)
        largest_values(model, ["c", "r"], CALLS)
        assert model.SerializeToString(deterministic=True) == before


class TestHalve:
    def test_all_of_a_network_that_moves_little(self, tmp_path):
        model = chain(6, {})
        plan, half, told = halved(model, tmp_path, allowed=0.1)
        assert (plan.layers, plan.kept) == (6, ())
        assert 0 < drift(model, half) <= 0.1
        assert told == [(1, 1)]

    @pytest.mark.parametrize("culprit", [0, 3, 5])
    def test_the_one_layer_that_alone_moves_scores_stays_float32(self, tmp_path, culprit):
        # Its values ride on 3000, where float16 has steps of 2.
        model = chain(6, {culprit: 3000.0})
        plan, half, told = halved(model, tmp_path, allowed=0.02)
        assert [node.name for node in plan.kept if node.layer] == [f"c{culprit}"]
        assert plan.kept_layers == {"scores would move too far": 1}
        assert plan.layers == 5
        assert drift(model, half) <= 0.02
        assert told == [(number, 6) for number in range(1, 7)]
        onnx.checker.check_model(half, full_check=True)

    @pytest.mark.parametrize("allowed", [0.2, 0.04, 0.01, 0.002])
    def test_what_is_allowed_holds_with_as_few_layers_as_will_do(self, tmp_path, allowed):
        model = chain(7, {1: 3000.0, 4: 300.0, 5: 1000.0})
        plan, half, _ = halved(model, tmp_path, allowed)
        assert drift(model, half) <= allowed
        kept = sum(plan.kept_layers.values())
        assert plan.layers + kept == 7
        if kept:
            # The larger the bias, the coarser the layer; with one less taken back it is too far.
            worst = [1, 5, 4][:kept]
            assert {f"c{n}" for n in worst} == {node.name for node in plan.kept if node.layer}
            _, fewer, _ = halved(model, tmp_path, 1e9, network=_without(model, worst[:-1]))
            assert drift(model, fewer) > allowed

    def test_a_value_without_room_stays_float32_for_that_reason(self, tmp_path):
        model = chain(4, {2: 40000.0})
        plan, half, _ = halved(model, tmp_path, allowed=1.0)
        (reason,) = plan.kept_layers
        assert reason.startswith("c2 reaches 4e+04, float16 ends at 65504")
        assert plan.layers == 3
        assert drift(model, half) <= 1.0

    def test_a_constant_node_that_is_not_of_the_network_stays(self, tmp_path):
        model = chain(3, {})
        plan, half, _ = halved(model, tmp_path, 1.0, network=frozenset({"c0", "a0"}))
        assert plan.nodes == {"c0", "a0"}
        old = {node.name: node.SerializeToString() for node in model.graph.node}
        for node in half.graph.node:
            if node.name in old and node.name not in plan.nodes:
                assert node.SerializeToString() == old[node.name]

    def test_nothing_fits(self, tmp_path):
        with pytest.raises(UnfitError, match="no layer of this detector's network fits float16"):
            halved(chain(2, {}), tmp_path, 1.0, [1e6 * call for call in CALLS])
        assert not (tmp_path / "half.onnx").exists()

    def test_nothing_may_move(self, tmp_path):
        with pytest.raises(UnfitError, match="network can be float16, for scores would move"):
            halved(chain(3, {}), tmp_path, allowed=0.0)

    def test_images_of_values_that_are_no_numbers(self, tmp_path):
        with pytest.raises(UnfitError, match="fits float16"):
            halved(chain(2, {}), tmp_path, 1.0, [CALLS[0] * np.float32(np.nan)])

    def test_more_layers_than_are_judged_one_by_one(self, tmp_path):
        model = chain(50, {17: 3000.0})
        plan, _, told = halved(model, tmp_path, allowed=_share(model, tmp_path))
        assert told[-1][0] == told[-1][1] <= 40
        assert "c17" in {node.name for node in plan.kept}
        assert plan.layers >= 40

    @pytest.mark.parametrize("odd", [0, 7, 15])
    def test_what_is_chosen_holds_on_the_one_image_that_moves_furthest(self, tmp_path, odd):
        model = chain(12, {n: 30.0 * (n + 1) for n in range(12)})
        calls = singles(16)
        calls[odd] *= 60
        allowed = 0.3 * drift(model, halved(model, tmp_path, 1e9, calls)[1], [calls[odd]])
        plan, half, _ = halved(model, tmp_path, allowed, calls)
        assert 0 < plan.layers < 12
        assert drift(model, half, calls) <= allowed

    def test_not_every_group_runs_on_all_images(self, tmp_path, monkeypatch):
        runs, run_of = [], onnxruntime.InferenceSession.run
        monkeypatch.setattr(
            onnxruntime.InferenceSession,
            "run",
            lambda self, *args: runs.append(1) or run_of(self, *args),
        )
        model, calls = chain(30, {7: 3000.0, 20: 300.0}), singles(16)
        _, _, told = halved(model, tmp_path, 0.02, calls)
        assert told[-1] == (30, 30)
        # Largest values, expected scores, the whole plan; groups, on 4 images; the bisection.
        assert len(runs) <= 3 * 16 + 30 * 2 + 5 * 16  # calls of two images


def singles(count):
    return [RNG.normal(size=(2, 3, 8, 8)).astype(np.float32) for _ in range(count)]


def _without(model, layers):
    return network_of(model) - {f"{kind}{n}" for n in layers for kind in "ca"}


def _share(model, tmp_path):
    _, half, _ = halved(model, tmp_path, 1e9)
    return 0.25 * drift(model, half)
