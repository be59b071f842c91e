from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import DDIMScheduler

from vadexport import contract
from vadexport.contract import ImageInput
from vadexport.detectors.denoising import Denoiser, WayBack, signal_shares
from vadexport.detectors.diffusion import Diffusion, DiffusionConfig, fit
from vadexport.errors import InputError
from vadexport.tracing.graph import simplify, trace

SIZE = (24, 32)
TINY = {"width": 8, "steps": 4, "batch_size": 4, "start": 240}


def denoiser_of(way, seed=0):
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    return Denoiser(torch.randn(1, 1, *SIZE, generator=generator), way, width=8).eval()


def images(count=8):
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (*SIZE, 1), np.uint8) for _ in range(count)]


class Told(torch.nn.Module):
    """A U-Net that knows the noise."""

    def __init__(self, noise):
        super().__init__()
        self.noise = noise
        self.times = []

    def forward(self, x, time):
        self.times.append(int(time))
        return type("Answer", (), {"sample": self.noise.expand_as(x)})


class TestDenoiser:
    @pytest.mark.parametrize(("start", "steps"), [(300, 6), (999, 10), (7, 7), (50, 1)])
    def test_steps_are_those_of_deterministic_ddim(self, start, steps):
        # diffusers' own scheduler, told the same times; without guidance the rest is DDIM alone.
        denoiser = denoiser_of(WayBack(start, steps, 0.0))
        image = torch.rand(2, 1, *SIZE) * 2 - 1
        scheduler = DDIMScheduler(num_train_timesteps=1000, clip_sample=False)
        shares = scheduler.alphas_cumprod
        times = denoiser.times.tolist()
        assert times[0] == start
        assert times == sorted(times, reverse=True)
        assert len(times) == steps
        with torch.inference_mode():
            found = denoiser(image)
            x = scheduler.add_noise(image, denoiser.noise, torch.tensor([start, start]))
            for time, after in zip(times, [*times[1:], None], strict=True):
                predicted = denoiser.unet(x, torch.tensor(time)).sample
                share = shares[time]
                clean = (x - (1 - share).sqrt() * predicted) / share.sqrt()
                later = torch.tensor(1.0) if after is None else shares[after]
                x = later.sqrt() * clean + (1 - later).sqrt() * predicted
        torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)

    def test_scheduler_steps_agree_where_its_times_are_the_same(self):
        scheduler = DDIMScheduler(
            num_train_timesteps=1000, clip_sample=False, timestep_spacing="leading"
        )
        scheduler.set_timesteps(10)  # 900, 800, … 0
        denoiser = denoiser_of(WayBack(900, 9, 0.0))
        assert denoiser.times.tolist() == scheduler.timesteps.tolist()[:-1]
        x = torch.randn(1, 1, *SIZE)
        with torch.inference_mode():
            for number in range(8):
                time = denoiser.times[number]
                predicted = denoiser.unet(x, time).sample
                expected = scheduler.step(predicted, int(time), x, eta=0.0).prev_sample
                found = denoiser._step(x, x, time, denoiser.coefficients[number])
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
                x = expected

    @pytest.mark.parametrize("guidance", [0.0, 2.0, 7.5])
    def test_who_knows_the_noise_gets_the_image_back(self, guidance):
        denoiser = denoiser_of(WayBack(400, 5, guidance))
        denoiser.unet = Told(denoiser.noise)
        image = torch.rand(3, 1, *SIZE) * 2 - 1
        torch.testing.assert_close(denoiser(image), image, rtol=1e-4, atol=1e-4)
        assert denoiser.unet.times == [400, 320, 240, 160, 80]

    def test_guidance_keeps_to_the_image(self):
        image = torch.rand(1, 1, *SIZE) * 2 - 1
        with torch.inference_mode():
            far, near = (
                (denoiser_of(WayBack(400, 5, guidance))(image) - image).abs().mean()
                for guidance in (0.0, 1.0)
            )
        assert near < far / 2

    def test_shares_fall_from_almost_one_to_almost_nothing(self):
        shares = signal_shares()
        assert len(shares) == 1000
        assert (shares.diff() < 0).all()
        assert shares[0] > 0.999
        assert shares[-1] < 1e-4

    @pytest.mark.parametrize("size", [(26, 32), (24, 30)])
    def test_a_size_that_the_unet_cannot_take(self, size):
        noise = torch.randn(1, 1, *size)
        with pytest.raises(InputError, match=rf"multiples of 4, not {size[0]}x{size[1]}"):
            Denoiser(noise, WayBack(100, 2, 0.0), width=8)


@pytest.fixture(scope="module")
def looped():
    """Too many steps to unroll."""
    config = DiffusionConfig(**TINY, denoise_steps=12)
    return fit(images(), config, ImageInput(*SIZE, 1), size=SIZE)


@pytest.fixture(scope="module", params=[3, None])
def graph(request, looped, tmp_path_factory):
    """The looped detector's graph at a batch, and images for it."""
    batch = request.param
    model = simplify(trace(looped, replace(looped.image_input, batch=batch))).model
    assert [node.op_type for node in model.graph.node].count("Loop") == 1
    path = tmp_path_factory.mktemp("loop") / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path, np.stack(images()[: batch or 2])


class TestLoop:
    @pytest.mark.slow
    @pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
    def test_the_graph_loops_and_agrees(self, looped, graph, backend):
        path, fed = graph
        with torch.inference_mode():
            expected = looped(torch.from_numpy(fed))
        if backend == "onnxruntime":
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            names = [output.name for output in session.get_outputs()]
            found = dict(zip(names, session.run(None, {contract.INPUT_NAME: fed}), strict=True))
        else:
            import openvino

            compiled = openvino.Core().compile_model(
                path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
            )
            answer = compiled(fed)
            found = {name: answer[name] for name in contract.OUTPUT_NAMES}
        for name in (contract.RAW_SCORE, contract.ANOMALY_MAP):
            np.testing.assert_allclose(found[name], expected[name].numpy(), rtol=1e-4, atol=1e-5)

    def test_few_steps_unroll(self):
        config = DiffusionConfig(**TINY, denoise_steps=2)
        detector = Diffusion(config, ImageInput(*SIZE, 1), size=SIZE).eval()
        graph = trace(detector, detector.image_input).model.graph
        assert "Loop" not in {node.op_type for node in graph.node}


class TestScores:
    def test_an_image_gets_the_same_score_alone_and_among_others(self, looped):
        together = torch.from_numpy(np.stack(images()))
        with torch.inference_mode():
            whole = looped(together)[contract.RAW_SCORE]
            each = torch.cat([looped(one[None])[contract.RAW_SCORE] for one in together])
        torch.testing.assert_close(whole, each, rtol=1e-4, atol=1e-5)

    def test_normal_images_reach_as_far_in_pixels_as_in_features(self, looped):
        reached = []
        with torch.inference_mode():
            for image in images():
                x = looped.preprocessing(torch.from_numpy(image)[None])
                pixels, features = looped.differences(x, looped.network(x))
                reached.append((looped.pixel_weight * pixels).amax() / features.amax())
        assert 0.5 < float(torch.stack(reached).median()) < 2

    def test_pixels_go_to_the_unet_and_back(self, looped):
        x = looped.preprocessing(torch.from_numpy(np.stack(images())))
        pixels = looped.to_pixels(x)
        assert pixels.shape == (8, 1, *SIZE)
        assert pixels.abs().max() <= 1 + 1e-5
        torch.testing.assert_close(looped._to_input(pixels), x, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        ("camera", "wanted"),
        [((300, 300), (64, 64)), ((1080, 1920), (36, 64)), ((64, 40), (64, 40)), ((9, 3), (8, 4))],
    )
    def test_large_cameras_are_scaled_down(self, camera, wanted):
        config = DiffusionConfig(width=8, blur_sigma=0.0, levels=(1,))
        detector = Diffusion(config, ImageInput(*camera, 3))
        assert detector.preprocessing.config.size == wanted


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 12},
        {"width": 0},
        {"start": 1000},
        {"start": 5, "denoise_steps": 6},
        {"denoise_steps": 0},
        {"guidance": -1.0},
        {"guidance": float("nan")},
    ],
)
def test_choices_that_mean_nothing(wrong):
    with pytest.raises(InputError):
        DiffusionConfig(**wrong)
