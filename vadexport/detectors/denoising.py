"""A U-Net that predicts noise, and the deterministic way back from a noised image."""

from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from vadexport.errors import InputError, MissingPackageError
from vadexport.torchvision_operators import declare_torchvision_operators

#: Times of the noise schedule (Ho et al. 2020): 0 is almost clean, 999 almost only noise.
TIMES: Final = 1000
#: More steps than this make a loop in the graph instead of a copy of the U-Net each.
MOST_UNROLLED: Final = 10
#: Halvings of the resolution inside the U-Net.
_HALVINGS: Final = 2
#: What height and width of the U-Net's input must be multiples of.
SIDE_MULTIPLE: Final = 4


def signal_shares() -> Tensor:
    """ᾱ of every time (Ho et al. 2020, linear schedule): float64 [1000], falling."""
    scheduler = _diffusers().DDIMScheduler(num_train_timesteps=TIMES)
    shares: Tensor = scheduler.alphas_cumprod
    return shares.double()


def _diffusers() -> Any:
    declare_torchvision_operators()
    try:
        import diffusers
    except ImportError:
        raise MissingPackageError("diffusers", "diffusion") from None
    return diffusers


class WayBack(NamedTuple):
    """How a noised image is denoised.

    Attributes:
        start: time up to which it was noised.
        steps: back from there.
        guidance: how strongly each step is pulled towards the image (the paper's w).
    """

    start: int
    steps: int
    guidance: float


class Denoiser(nn.Module):
    """Noise an image up to a time, and denoise it in a few steps that keep to the image.

    The noise is a constant, and the steps are deterministic (DDIM, Song et al. 2021), so that an
    image always gets the same reconstruction, on every backend. Each step is conditioned on the
    image as in DDAD (Mousakhan et al. 2023, algorithm 1, their η being 0).
    """

    shares: Tensor
    times: Tensor
    coefficients: Tensor
    noise: Tensor

    def __init__(self, noise: Tensor, way: WayBack, *, width: int) -> None:
        """Make an untrained denoiser.

        Args:
            noise: standard normal, float32 [1, C, h, w], of the images' channels and size.
            way: back from the noised image.
            width: channels of the U-Net's first layers, a multiple of 8.

        Raises:
            InputError: the U-Net cannot take the size.
            MissingPackageError: diffusers is not installed.
        """
        super().__init__()
        _, channels, height, width_of_image = noise.shape
        if height % SIDE_MULTIPLE or width_of_image % SIDE_MULTIPLE:
            raise InputError(
                f"the U-Net takes heights and widths that are multiples of {SIDE_MULTIPLE}, not "
                f"{height}x{width_of_image}: give --size"
            )
        self.unet = _diffusers().UNet2DModel(
            in_channels=channels,
            out_channels=channels,
            layers_per_block=1,
            block_out_channels=(width, 2 * width, 4 * width),
            down_block_types=("DownBlock2D",) * (_HALVINGS + 1),
            up_block_types=("UpBlock2D",) * (_HALVINGS + 1),
            norm_num_groups=8,
            add_attention=False,
        )
        self.way = way
        shares = signal_shares()
        times, coefficients = ddim_steps(shares, way.start, way.steps)
        self.register_buffer("shares", shares[: way.start + 1].float(), persistent=False)
        self.register_buffer("times", times, persistent=False)
        self.register_buffer("coefficients", coefficients, persistent=False)
        self.register_buffer("noise", noise)

    def forward(self, image: Tensor) -> Tensor:
        """Reconstruct images, float32 [N, C, h, w] around 0; normal ones come back unchanged."""
        signal, noise, _, _ = self.coefficients[0].unbind()
        x = signal * image + noise * self.noise
        if self.way.steps > MOST_UNROLLED and torch.compiler.is_exporting():
            return self._loop(image, x)
        for number in range(self.way.steps):
            x = self._step(image, x, self.times[number], self.coefficients[number])
        return x

    def _loop(self, image: Tensor, x: Tensor) -> Tensor:
        """The same steps as a loop of the graph (ONNX Loop), which holds the U-Net once."""
        from torch._higher_order_ops import while_loop  # the public API of `torch.export` loops

        def unfinished(number: Tensor, x: Tensor) -> Tensor:
            del x
            return number < self.way.steps

        def body(number: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            at = number.reshape(1)
            time = self.times.index_select(0, at).reshape(())
            coefficients = self.coefficients.index_select(0, at).reshape(-1)
            return number + 1, self._step(image, x, time, coefficients)

        first = torch.zeros((), dtype=torch.int64)
        found: Tensor = while_loop(unfinished, body, (first, x))[1]  # type: ignore[no-untyped-call]
        return found

    def _step(self, image: Tensor, x: Tensor, time: Tensor, coefficients: Tensor) -> Tensor:
        """One step back, `coefficients` as `ddim_steps` gives them."""
        signal, noise, next_signal, next_noise = coefficients.unbind()
        predicted: Tensor = self.unet(x, time).sample
        # The image, noised as the U-Net sees x noised, less x: where x has gone astray from it.
        astray = signal * image + noise * predicted - x
        pulled = predicted - self.way.guidance * noise * astray
        clean = (x - noise * pulled) / signal
        return next_signal * clean + next_noise * pulled

    def loss(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the predicted noise, at random times of the way back.

        The paper trains on all times; those beyond the start are never met in use.

        Args:
            image: float32 [N, C, h, w] around 0.
            generator: of times and noise, on the CPU.
        """
        times = torch.randint(len(self.shares), (len(image),), generator=generator)
        noise = torch.randn(image.shape, generator=generator).to(image.device)
        share = self.shares[times.to(image.device)].view(-1, 1, 1, 1)
        noised = share.sqrt() * image + (1 - share).sqrt() * noise
        predicted: Tensor = self.unet(noised, times.to(image.device)).sample
        return (predicted - noise).square().mean()


def ddim_steps(shares: Tensor, start: int, steps: int) -> tuple[Tensor, Tensor]:
    """The times that deterministic DDIM visits from `start` on, and what each step needs.

    Args:
        shares: ᾱ of every time, float64.
        start: first time.
        steps: number of them, evenly spaced; after the last the image is clean.

    Returns:
        Times int64 [steps], and float32 [steps, 4]: √ᾱ and √(1−ᾱ) at each time, and at the next.
    """
    times = [round(start * (steps - number) / steps) for number in range(steps)]
    now = shares[times]
    after = torch.cat([now[1:], torch.ones(1, dtype=now.dtype)])
    rows = torch.stack([now.sqrt(), (1 - now).sqrt(), after.sqrt(), (1 - after).sqrt()], dim=1)
    return torch.tensor(times), rows.float()
