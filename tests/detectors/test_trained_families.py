"""What holds for every family that trains by gradient descent."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from vadexport import contract
from vadexport.contract import ImageInput
from vadexport.detectors.checkpoint import load_detector, save_detector
from vadexport.detectors.families import FAMILIES
from vadexport.detectors.normal_images import NormalImages
from vadexport.detectors.training import Training
from vadexport.errors import InputError
from vadexport.passes import DEFAULT_PASSES, apply_passes
from vadexport.tracing.graph import simplify, trace
from vadexport.verification.locating import locate

#: Of the spread of normal scores: what an FP32 artifact may differ from its reference.
MOST_DRIFT = 1e-3
#: Choices small enough for a test, and by stage the step in which it is killed.
TINY = {
    "student_teacher": ({"levels": (1, 2), "steps": 6, "batch_size": 3}, {"train": 4}),
    "efficient_ad": (
        {"width": 4, "teacher_steps": 5, "steps": 6, "batch_size": 2},
        {"teacher": 3, "student": 4},
    ),
    "autoencoder": ({"width": 8, "latent": 4, "steps": 12, "batch_size": 4}, {"train": 7}),
    "diffusion": (
        {"width": 8, "steps": 8, "batch_size": 4, "denoise_steps": 2, "start": 200},
        {"train": 4},
    ),
}
#: Camera's height, width and channels, and the network's input.
SHAPES = {"square": ((64, 64, 1), None), "resized": ((72, 120, 3), (96, 64))}


class KilledError(Exception):
    pass


def images_of(shape, count=12):
    """Smooth images unlike each other, uint8 [H, W, C]."""
    height, width, channels = shape
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width] / 20
    images = []
    for _ in range(count):
        phase, slope = rng.uniform(0, 6, channels), rng.uniform(0.5, 2, channels)
        waves = 128 + 60 * np.sin(slope * x[..., None] + phase + y[..., None] * slope[::-1])
        images.append((waves + rng.normal(0, 20, waves.shape)).clip(0, 255).astype(np.uint8))
    return images


def fitted(name, shape="square", *, images=None, **arguments):
    camera, size = SHAPES[shape]
    family = FAMILIES[name]
    choices = {**TINY[name][0], **arguments.pop("choices", {})}
    return family.load("fit")(
        images_of(camera) if images is None else images,
        family.load(family.config)(**choices),
        ImageInput(*camera),
        size=size,
        **arguments,
    )


@pytest.fixture(scope="module")
def detectors():
    """Fitted once for all tests that only look at them."""
    made = {}

    def get(name, shape="square"):
        if (name, shape) not in made:
            made[name, shape] = fitted(name, shape)
        return made[name, shape]

    return get


def outputs_of(detector, images):
    with torch.inference_mode():
        outputs = detector(torch.from_numpy(np.stack(images)))
    return {name: value.numpy() for name, value in outputs.items()}


def same_weights(first, second):
    mine, others = first.state_dict(), second.state_dict()
    assert mine.keys() == others.keys()
    return all(torch.equal(mine[name], others[name]) for name in mine)


def killer(stage, step):
    def progress(name, done, _total, _detail=""):
        if (name, done) == (stage, step):
            raise KilledError

    return progress


families = pytest.mark.parametrize("name", TINY)


def test_all_of_them_are_here():
    trained = {name for name, family in FAMILIES.items() if family.trains}
    assert set(TINY) <= trained


@pytest.mark.slow
@families
@pytest.mark.parametrize(
    ("shape", "batch"), [("square", 1), ("square", 3), ("square", None), ("resized", None)]
)
def test_the_graph_agrees_with_pytorch(detectors, name, shape, batch):
    detector, images = detectors(name, shape), images_of(SHAPES[shape][0])
    wanted = replace(detector.image_input, batch=batch)
    session = onnxruntime.InferenceSession(
        simplify(trace(detector, wanted)).model.SerializeToString(),
        providers=["CPUExecutionProvider"],
    )
    names = [output.name for output in session.get_outputs()]
    # The two held-out images may be alike by chance: the spread of all.
    scores = outputs_of(detector, images)[contract.RAW_SCORE].astype(np.float64)
    unit = np.subtract(*np.percentile(scores, [75, 25]))
    assert unit > 0
    for count in [batch] if batch else [1, 2, 5]:
        fed = np.stack(images[:count])
        found = dict(zip(names, session.run(None, {contract.INPUT_NAME: fed}), strict=True))
        # Image by image: a batch must not change what each of its images gets.
        for number in range(count):
            expected = outputs_of(detector, images[number : number + 1])
            for output in (contract.RAW_SCORE, contract.ANOMALY_MAP):
                assert found[output][number].shape == expected[output][0].shape
                assert np.abs(found[output][number] - expected[output][0]).max() <= (
                    MOST_DRIFT * unit
                )
            assert found[contract.PRED_LABEL][number] == expected[contract.PRED_LABEL][0]


@pytest.mark.slow
@families
def test_what_passes_leave_the_name_keeps_its_value(detectors, name, tmp_path):
    detector = detectors(name)
    before = simplify(trace(detector, replace(detector.image_input, batch=1))).model
    after, places = apply_passes(before, DEFAULT_PASSES)
    assert any(places.values())
    files = tmp_path / "before.onnx", tmp_path / "after.onnx"
    for model, path in zip((before, after), files, strict=True):
        onnx.save(model, path)
    found = locate(*files, np.stack(images_of(SHAPES["square"][0])[:1]))
    assert found is None, str(found)


@families
def test_a_checkpoint_keeps_everything(detectors, name, tmp_path):
    detector, images = detectors(name), images_of(SHAPES["square"][0])
    save_detector(detector, tmp_path / "x.safetensors")
    loaded = load_detector(tmp_path / "x.safetensors")
    assert loaded.config() == detector.config()
    assert loaded.thresholds == detector.thresholds
    assert loaded.describe() == detector.describe()
    assert same_weights(loaded, detector)
    before, after = outputs_of(detector, images), outputs_of(loaded, images)
    for output, value in before.items():
        assert (after[output] == value).all(), output


@families
@pytest.mark.parametrize("value", [None, [], "x", {}, {"seed": 1}])
def test_a_damaged_configuration(detectors, name, value):
    detector = detectors(name)
    with pytest.raises(InputError, match="configuration is damaged"):
        type(detector).from_config(
            value, detector.image_input, detector.preprocessing.config, detector.state_dict()
        )


@families
def test_fields_of_another_type(detectors, name):
    detector = detectors(name)
    for field in detector.config():
        with pytest.raises(InputError, match="configuration is damaged"):
            type(detector).from_config(
                {**detector.config(), field: None},
                detector.image_input,
                detector.preprocessing.config,
                detector.state_dict(),
            )


@families
def test_same_seed_same_weights(detectors, name):
    assert same_weights(fitted(name), detectors(name))


@families
def test_another_seed_gives_other_weights(detectors, name):
    assert not same_weights(fitted(name, choices={"seed": 1}), detectors(name))


@pytest.mark.parametrize(
    ("name", "stage"), [(name, stage) for name, (_, stages) in TINY.items() for stage in stages]
)
def test_a_killed_fit_goes_on_as_if_nothing_had_happened(detectors, name, stage, tmp_path):
    warnings = []
    training = Training(state=tmp_path / "state", save_every_s=0, warn=warnings.append)
    step = TINY[name][1][stage]
    with pytest.raises(KilledError):
        fitted(name, training=training, progress=killer(stage, step))
    first_steps = {}
    resumed = fitted(
        name,
        training=training,
        progress=lambda told, done, _all, _detail="": first_steps.setdefault(told, done),
    )
    assert first_steps[stage] == step + 1
    assert warnings == []
    assert same_weights(resumed, detectors(name))
    assert resumed.thresholds == detectors(name).thresholds


@families
def test_the_state_of_other_images_is_not_used(name, tmp_path):
    warnings = []
    training = Training(state=tmp_path / "state", save_every_s=0, warn=warnings.append)
    stage, step = next(iter(TINY[name][1].items()))
    with pytest.raises(KilledError):
        fitted(name, training=training, progress=killer(stage, step))
    others = [255 - image for image in images_of(SHAPES["square"][0])]
    found = fitted(name, images=others, training=training)
    assert same_weights(found, fitted(name, images=others))
    assert "other images" in warnings[0]


@families
def test_the_loss_falls(name):
    choices = {"steps": 30, "learning_rate": 0.003}
    losses = []

    def progress(_name, _done, _total, detail=""):
        if detail:
            losses.append(float(detail.removeprefix("loss ")))

    fitted(name, choices=choices, progress=progress)
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[-30:-25])


@families
def test_max_minutes_stops_with_a_detector(name):
    steps = []
    detector = fitted(
        name,
        training=Training(max_minutes=1e-9),
        progress=lambda told, done, *_: steps.append((told, done)),
    )
    trained = [each for each in steps if each[0] not in ("weight", "threshold")]
    assert trained == [(stage, 1) for stage in TINY[name][1]]
    assert detector.normal_scores.isfinite().all()


@families
def test_held_out_images_set_the_thresholds(detectors, name):
    detector = detectors(name)
    assert detector.thresholds.rule == "0.95 quantile of 2 held-out normal images"
    scores = outputs_of(detector, images_of(SHAPES["square"][0]))[contract.RAW_SCORE]
    for kept in detector.normal_scores.numpy():
        assert np.isclose(scores, kept, rtol=1e-4).any()
    assert not detector.training
    assert not any(weight.requires_grad for weight in detector.parameters())


@families
def test_of_few_images_all_set_the_thresholds(name):
    images = images_of(SHAPES["square"][0], count=1)
    detector = fitted(name, images=images)
    assert detector.thresholds.rule == "0.95 quantile of 1 normal images, which trained it too"
    assert len(detector.normal_scores) == 1


@families
def test_no_image(name):
    with pytest.raises(InputError, match="at least one normal image"):
        fitted(name, images=[])


@families
@pytest.mark.parametrize(
    "choices", [{"steps": 0}, {"batch_size": 0}, {"learning_rate": 0}, {"learning_rate": np.nan}]
)
def test_wrong_choices(name, choices):
    family = FAMILIES[name]
    with pytest.raises(InputError):
        family.load(family.config)(**choices)


@families
def test_the_checkpoint_tells_how_training_ended(detectors, name, tmp_path):
    save_detector(detectors(name), tmp_path / "d.safetensors")
    loaded = load_detector(tmp_path / "d.safetensors")
    assert loaded.stages == detectors(name).stages
    assert [stage.name for stage in loaded.stages] == list(TINY[name][1])
    for stage in loaded.stages:
        assert (stage.steps, stage.ended) == (stage.of, "all steps")
    assert f"{stage.of} of {stage.of} steps (all steps)" in loaded.facts()["training"]


def test_the_channels_of_efficient_ads_teacher_count_alike(detectors):
    detector = detectors("efficient_ad")
    order = NormalImages(images_of(SHAPES["square"][0]), detector.preprocessing, seed=0)
    with torch.inference_mode():
        found = detector.teacher(order.batch(order.training)).double()
    assert found.mean(dim=(0, 2, 3)).abs().max() < 1e-3
    assert (found.square().mean(dim=(0, 2, 3)) - 1).abs().max() < 1e-2
