"""Plausible fitted states of anomalib's models, for checkpoints with random weights.

Each function takes a module and preprocessed images, N×3×H×W, as training would.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

Prepare = Callable[[Any, Tensor], None]


@contextmanager
def batch_norm_from_data(module: nn.Module) -> Iterator[None]:
    """Within it, each batch norm takes its statistics from the batches that reach it.

    Where one sees several, as where a backbone looks at an image in several sizes, the largest
    variances count: with those of one size alone, activations explode in another.
    """
    seen: set[nn.Module] = set()

    def measure(norm: Any, inputs: tuple[Tensor]) -> None:
        values = inputs[0].detach().transpose(0, 1).flatten(1)
        variance = values.var(1).clamp_min(1e-3)
        if norm in seen:
            norm.running_var.copy_(torch.maximum(norm.running_var, variance))
        else:
            seen.add(norm)
            norm.running_mean.copy_(values.mean(1))
            norm.running_var.copy_(variance)

    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    norms = [part for part in module.modules() if isinstance(part, kinds)]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms if norm.track_running_stats]
    yield
    for hook in hooks:
        hook.remove()


def enliven(module: nn.Module) -> None:
    """Random weights that act: a constructor's defaults leave parts of some models without say."""
    for name, part in module.named_modules():
        for key, value in part.named_parameters(recurse=False):
            if isinstance(part, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001
                nn.init.uniform_(value, *((0.5, 1.5) if key == "weight" else (-0.2, 0.2)))
            elif type(part).__name__ == "LayerScale" or key in ("gamma_1", "gamma_2"):
                nn.init.uniform_(value, 0.2, 0.6)
            elif value.ndim >= 2 and not value.any() and "mean_std" not in name:
                nn.init.normal_(value, std=0.02)


def run_once(module: Any, images: Tensor) -> None:
    """Batch norm sees the images, and that is all there is to fit."""
    with batch_norm_from_data(module):
        module.model(images)


def collect(module: Any, images: Tensor) -> None:
    """Memory banks and Gaussians: the training forward collects, `fit` condenses."""
    module.model.train()
    with batch_norm_from_data(module):
        module.model(images)
    module.fit()
    if hasattr(module, "_is_fitted"):
        module._is_fitted = torch.tensor([True])  # noqa: SLF001


def collect_thrice(module: Any, images: Tensor) -> None:
    """MHPatchcore: components, covariance and memory bank take a pass each."""
    module.model.train()
    for _ in range(3):
        with batch_norm_from_data(module):
            module.training_step(SimpleNamespace(image=images))
        module.fit()


def centroid(module: Any, images: Tensor) -> None:
    """Cfa: the memory bank is a mean over the training images."""
    with batch_norm_from_data(module):
        module.model.feature_extractor(images)
    module.model.initialize_centroid([SimpleNamespace(image=images)])


def channel_statistics(module: Any, images: Tensor) -> None:
    """EfficientAd: the teacher's channels normalised, then the quantiles of both maps."""
    features = module.model.teacher(images)
    module.model.mean_std.update(
        {
            "mean": features.mean((0, 2, 3), keepdim=True),
            "std": features.std((0, 2, 3), keepdim=True),
        }
    )
    maps = module.model.get_maps(images, normalize=False)
    module.model.quantiles.update(
        {
            f"{name}_{which}": torch.quantile(values.flatten()[::7], share)
            for which, values in zip(("st", "ae"), maps, strict=True)
            for name, share in (("qa", 0.9), ("qb", 0.995))
        }
    )


def couplings(module: Any, images: Tensor) -> None:
    """Csflow: its couplings start with factors of zero; large ones overflow along the chain."""
    for name, value in module.model.graph.named_parameters():
        if "gamma" in name:
            nn.init.uniform_(value, 0.02, 0.1)
    run_once(module, images)


def codebooks(module: Any, images: Tensor) -> None:
    """Dsr: codes that lie where the encoder's outputs do, else one code stands for everything."""
    latent = module.model.discrete_latent_model
    features = latent._encoder_b(images)  # noqa: SLF001
    settle(latent._pre_vq_conv_top, latent.vq_vae_top, latent._encoder_t(features))  # noqa: SLF001
    quantized = latent.vq_vae_top(latent._pre_vq_conv_top(latent._encoder_t(features)))  # noqa: SLF001
    joined = torch.cat((features, latent.upsample_t(quantized)), dim=1)
    settle(latent._pre_vq_conv_bot, latent.vq_vae_bot, joined)  # noqa: SLF001
    run_once(module, images)


def settle(convolution: Any, quantizer: Any, inputs: Tensor) -> None:
    """Let a convolution give means of 0 and deviations of 1, and draw codes from its outputs."""
    outputs = convolution(inputs)
    mean, deviation = outputs.mean((0, 2, 3)), outputs.std((0, 2, 3))
    convolution.weight.div_(deviation[:, None, None, None])
    convolution.bias.sub_(mean).div_(deviation)
    rows = convolution(inputs).permute(0, 2, 3, 1).flatten(0, 2)
    codes = quantizer.embedding.weight
    codes.copy_(rows[torch.randint(len(rows), (len(codes),))])


def describe(module: Any, images: Tensor) -> None:
    """WinClip: text embeddings of the class, instead of training."""
    module.setup("predict")
    run_once(module, images)
