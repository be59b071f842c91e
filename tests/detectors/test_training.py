import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from vadexport.detectors import training as training_module
from vadexport.detectors.autoencoder import AutoencoderConfig
from vadexport.detectors.normal_images import NormalImages
from vadexport.detectors.preprocessing import Preprocessing, PreprocessingConfig
from vadexport.detectors.seeds import seeded_weights
from vadexport.detectors.training import Plan, Training, train
from vadexport.detectors.training_state import write_state
from vadexport.errors import InputError
from vadexport.fitting import FitOptions, fit
from vadexport.listening import Listener

PLAN = Plan(
    name="train",
    identity={"family": "test"},
    steps=20,
    batch_size=3,
    learning_rate=0.01,
    seed=3,
    evaluate_every=4,
    patience=100,
)


class KilledError(Exception):
    pass


@pytest.fixture
def images():
    rng = np.random.default_rng(1)
    return list(rng.integers(0, 256, (12, 16, 16, 1), dtype=np.uint8))


def prepared(images, seed=3):
    config = PreprocessingConfig((16, 16), (0.5,) * 3, (0.25,) * 3)
    return NormalImages(images, Preprocessing(config), seed=seed)


def network(seed=5):
    with seeded_weights(seed):
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1)
        )


def run(images, *, plan=PLAN, training=None, progress=training_module.no_progress):
    module = network()

    def loss(x, generator):
        noise = torch.randn(x.shape, generator=generator) * 0.1
        return (module(x + noise) - x).square().mean()

    trained = train(module, loss, prepared(images), plan, training or Training(), progress)
    return module, trained


def killed_at(step):
    def progress(_name, done, _total, _detail=""):
        if done == step:
            raise KilledError

    return progress


def same(first, second):
    return all(
        torch.equal(one, other)
        for one, other in zip(
            first.state_dict().values(), second.state_dict().values(), strict=True
        )
    )


def test_loss_falls_and_is_told(images):
    heard = []
    _, trained = run(images, progress=lambda *told: heard.append(told))
    assert [done for _, done, _, _ in heard] == list(range(1, 21))
    assert {(name, total) for name, _, total, _ in heard} == {("train", 20)}
    losses = [float(detail.removeprefix("loss ")) for *_, detail in heard]
    assert losses[-1] < losses[0] * 0.8
    assert trained.steps == 20


def test_same_seed_same_weights_and_another_seed_others(images):
    first, second = run(images)[0], run(images)[0]
    other = run(images, plan=replace(PLAN, seed=4))[0]
    assert same(first, second)
    assert not same(first, other)


@pytest.mark.parametrize("step", [1, 4, 7, 19])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(images, tmp_path, step):
    notes = []
    training = Training(state=tmp_path / ".x.training", note=notes.append, save_every_s=0)
    with pytest.raises(KilledError):
        run(images, training=training, progress=killed_at(step))
    heard = []
    resumed, trained = run(
        images, training=training, progress=lambda _name, done, *_: heard.append(done)
    )
    whole, uninterrupted = run(images)
    # The step that was ended by its listener was written before.
    assert notes == [f"train: going on after step {step}"]
    assert heard[0] == step + 1
    assert trained == uninterrupted
    assert same(resumed, whole)


def test_a_finished_stage_is_not_trained_again(images, tmp_path):
    training = Training(state=tmp_path / "state", save_every_s=0)
    first, trained = run(images, training=training)
    heard = []
    again, found = run(images, training=training, progress=lambda *told: heard.append(told))
    assert heard == []
    assert found == trained
    assert same(first, again)


def test_clear_removes_the_state_of_every_stage_and_nothing_else(images, tmp_path):
    training = Training(state=tmp_path / ".x.training")
    run(images, training=training)
    run(images, training=training, plan=replace(PLAN, name="other"))
    (tmp_path / ".y.training-train").touch()
    assert len(list(tmp_path.iterdir())) == 3
    training.clear()
    assert [path.name for path in tmp_path.iterdir()] == [".y.training-train"]


def interrupted(images, tmp_path, warnings):
    training = Training(state=tmp_path / "state", save_every_s=0, warn=warnings.append)
    with pytest.raises(KilledError):
        run(images, training=training, progress=killed_at(6))
    return training


@pytest.mark.parametrize("what", ["images", "plan"])
def test_a_state_of_something_else_is_not_used(images, tmp_path, what):
    warnings = []
    training = interrupted(images, tmp_path, warnings)
    plan = PLAN
    if what == "images":
        images = [*images[:-1], 255 - images[-1]]
    else:
        plan = replace(PLAN, identity={"family": "another"})
    found = run(images, plan=plan, training=training)[0]
    assert same(found, run(images, plan=plan)[0])
    assert len(warnings) == 1
    assert "other images or another configuration" in warnings[0]


def damage_cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def damage_pickle(path):
    torch.save({"step": 3}, path)


def damage_header(path):
    save_file(load_file(path), path, {"vadexport-training": "[1, 2]"})


def damage_shape(path):
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors["model/0.bias"] = torch.zeros(3)
    save_file(tensors, path, metadata)


def damage_step(path):
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["vadexport-training"])
    header["step"] = -1
    save_file(load_file(path), path, {"vadexport-training": json.dumps(header)})


@pytest.mark.parametrize(
    "damage", [damage_cut, damage_pickle, damage_header, damage_shape, damage_step]
)
def test_a_damaged_state_starts_anew(images, tmp_path, damage):
    warnings = []
    training = interrupted(images, tmp_path, warnings)
    damage(tmp_path / "state-train")
    found = run(images, training=training)[0]
    assert same(found, run(images)[0])
    assert len(warnings) == 1
    assert "starts anew" in warnings[0]


def test_a_state_that_cannot_be_written_is_a_warning(images, tmp_path):
    warnings = []
    training = Training(state=tmp_path / "missing" / "state", warn=warnings.append)
    assert same(run(images, training=training)[0], run(images)[0])
    assert "cannot keep the training's progress" in warnings[0]


def test_early_stop_keeps_the_best_weights(images):
    plan = replace(PLAN, steps=400, learning_rate=0.05, patience=2, evaluate_every=1)
    heard = []
    _, trained = run(images, plan=plan, progress=lambda *told: heard.append(told))
    assert trained.steps < 400
    assert trained.best_step == trained.steps - 2
    assert heard[-1][1:3] == (trained.steps, trained.steps)  # the bar is closed


def test_max_minutes_stops(images):
    _, trained = run(images, training=Training(max_minutes=1e-9))
    assert trained.steps == trained.best_step == 1


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf")])
def test_minutes_that_are_no_limit(minutes):
    with pytest.raises(InputError, match="minutes"):
        Training(max_minutes=minutes)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite(images, value):
    module = network()
    with pytest.raises(InputError, match=r"the loss of 'train' is (nan|inf) in step 1"):
        train(
            module,
            lambda x, _generator: module(x).square().mean() * value,
            prepared(images),
            PLAN,
            Training(),
            training_module.no_progress,
        )


def test_a_fifth_is_held_out(images):
    split = prepared(images)
    assert len(split.held_out) == 2
    assert sorted((*split.training, *split.held_out)) == list(range(12))
    assert prepared(images).held_out == split.held_out
    assert len({prepared(images, seed=seed).held_out for seed in range(8)}) > 1


def test_of_few_images_none_is_held_out(images):
    assert prepared(images[:4]).training == prepared(images[:4]).held_out == (0, 1, 2, 3)
    assert len(prepared(images[:5]).held_out) == 1
    with pytest.raises(InputError, match="at least one"):
        prepared([])


def test_the_caller_s_random_numbers_stay(images):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    run(images)
    assert torch.equal(torch.rand(3), expected)


def test_a_fit_that_succeeded_leaves_no_state(images, tmp_path, monkeypatch):
    writes = []

    def write(path, *arguments):
        writes.append(path)
        write_state(path, *arguments)

    monkeypatch.setattr(training_module, "write_state", write)
    (tmp_path / "good").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(np.kron(image[..., 0], np.ones((4, 4), np.uint8))).save(
            tmp_path / "good" / f"{number}.png"
        )
    options = FitOptions(
        "autoencoder",
        str(tmp_path / "good"),
        tmp_path / "x.safetensors",
        AutoencoderConfig(width=4, steps=4),
    )
    fit(options, Listener())
    assert [path.name for path in writes] == [".x.safetensors.training-train"]
    assert {path.name for path in tmp_path.iterdir()} == {"good", "x.safetensors"}


def test_a_family_that_does_not_train_takes_no_minutes(tmp_path):
    options = FitOptions("patchcore", "none", tmp_path / "x.safetensors", max_minutes=1.0)
    with pytest.raises(InputError, match="takes no --max-minutes"):
        fit(options, Listener())


def test_a_stage_that_ran_out_of_time_goes_on_and_says_so(images, tmp_path):
    training = Training(max_minutes=1e-9, state=tmp_path / "state")
    _, first = run(images, training=training)
    assert (first.steps, first.of, first.ended) == (1, 20, "out of time")
    _, second = run(images, training=training)
    assert second.steps == 2
    _, third = run(images, training=replace(training, max_minutes=None))
    assert (third.steps, third.ended) == (20, "all steps")


def test_a_stage_without_a_better_loss_says_so(images):
    # Nothing is learnt, so the loss on the held-out images never improves again.
    _, stage = run(images, plan=replace(PLAN, steps=400, learning_rate=1e-30, patience=2))
    assert stage.ended == "no better loss"
    assert stage.steps < 400


def test_a_time_limit_brings_the_learning_rate_down_with_it(images, monkeypatch):
    clock = itertools.count(step=1.0)
    monkeypatch.setattr(training_module.time, "monotonic", lambda: next(clock) * 3)
    rates = []
    step = torch.optim.Adam.step

    def noted(self, *arguments):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", noted)
    _, stage = run(images, plan=replace(PLAN, steps=1000), training=Training(max_minutes=1.0))
    assert stage.ended == "out of time"
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.1 * PLAN.learning_rate
