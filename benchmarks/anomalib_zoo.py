"""Checkpoints of anomalib's image models, made offline: random weights, a plausible fitted state.

They are files as `Engine.fit` leaves them behind, written by Lightning itself, for whatever reads
anomalib checkpoints. Parity needs no trained weights, only activations that neither die nor
explode, scores that differ between images and thresholds between those scores.

    python benchmarks/anomalib_zoo.py FOLDER [--models Patchcore,Padim]
"""

import argparse
import logging
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from anomalib_states import (
    Prepare,
    centroid,
    channel_statistics,
    codebooks,
    collect,
    collect_thrice,
    couplings,
    describe,
    enliven,
    run_once,
)
from torch import Tensor, nn

from vadexport.torchvision_operators import declare_torchvision_operators


# ------------------------------------------------------------------------------ offline
def import_anomalib() -> None:
    """Make anomalib importable where torch is a CPU build."""
    declare_torchvision_operators()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_module("anomalib.models")


class _NoWeights(dict[str, Tensor]):
    """Stands for a file of weights that is not downloaded; loading it changes nothing."""


@contextmanager
def offline() -> Iterator[None]:
    """Within it, constructors of anomalib's models take random weights instead of downloading.

    Loading a checkpoint needs it as well: `load_from_checkpoint` calls the constructor before it
    loads the state. What that constructor would download:

    - always, from timm: AnomalyDINO, CFM, Dinomaly, FoundAD, InpFormer, L2BT, Stfpm, SuperADD,
      Supersimplenet, Uflow;
    - always, from torchvision: Cfa, Csflow, UniNet;
    - always, from elsewhere: AnomalyVFM and WinClip (Hugging Face), CFM (Point-MAE, GitHub);
    - unless `pre_trained` is false in its hyper-parameters, from timm: Cflow, Dfkde, Dfm, Fastflow,
      Fre, GeneralAD, Glass, MHPatchcore, Padim, Patchcore, Patchflow, Rad, ReverseDistillation;
    - textures for training, where the folder in its hyper-parameters does not exist: Draem
      (`dtd_dir`), Glass (`anomaly_source_path`, where it is given).

    Dsr, EfficientAd and Ganomaly download nothing there (the first two only as training starts).
    """
    import_anomalib()
    import timm
    from torchvision.models import WeightsEnum

    create, load = timm.create_model, nn.Module.load_state_dict

    def create_model(model_name: str, pretrained: bool = False, *args: Any, **kwargs: Any) -> Any:  # noqa: FBT001, FBT002 - timm's own signature
        del pretrained
        return create(model_name, False, *args, **kwargs)  # noqa: FBT003

    def load_state_dict(self: nn.Module, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(state_dict, _NoWeights):
            return None
        return load(self, state_dict, *args, **kwargs)

    def nothing(*_: Any, **__: Any) -> _NoWeights:
        return _NoWeights()

    image = "anomalib.models.image"
    with ExitStack() as stack:
        for patch in (
            mock.patch.object(timm, "create_model", create_model),
            mock.patch.object(WeightsEnum, "get_state_dict", nothing),
            mock.patch.object(nn.Module, "load_state_dict", load_state_dict),
            # A data set of textures, for training only.
            mock.patch(f"{image}.draem.lightning_model.download_and_extract", nothing),
            mock.patch(f"{image}.glass.lightning_model.download_and_extract", nothing),
            mock.patch(f"{image}.anomalyvfm.torch_model.hf_hub_download", nothing, create=True),
            mock.patch(f"{image}.anomalyvfm.torch_model.load_file", nothing, create=True),
            mock.patch(f"{image}.winclip.torch_model.PRETRAINED", None),
        ):
            stack.enter_context(patch)
        yield


# ------------------------------------------------------------------------------ images
def textures(count: int, seed: int = 0, size: int = 256) -> Tensor:
    """Random textures N×3×H×W in 0–1; the later an image, the plainer a blot on it."""
    random = torch.Generator().manual_seed(seed)
    axis = torch.linspace(0, 1, size)
    images = []
    for number in range(count):
        coarse = torch.rand(1, 3, 8, 8, generator=random)
        fine = torch.rand(1, 3, size // 4, size // 4, generator=random)
        grow = {"size": (size, size), "mode": "bicubic", "align_corners": False}
        image = sum(
            share * nn.functional.interpolate(noise, **grow)
            for share, noise in ((0.35, coarse), (0.3, fine))
        )[0]
        angle, waves, x, y = torch.rand(4, generator=random).tolist()
        along = axis[:, None] * math.cos(angle) + axis[None] * math.sin(angle)
        image = image + 0.2 * (0.5 + 0.5 * torch.sin(2 * math.pi * (8 + 8 * waves) * along))
        far = (axis[:, None] - 0.2 - 0.6 * y) ** 2 + (axis[None] - 0.2 - 0.6 * x) ** 2
        blot = torch.exp(-far / 0.005) * number / max(count - 1, 1)
        images.append(image * (1 - blot) + blot * torch.tensor([0.9, 0.1, 0.1])[:, None, None])
    # As 8-bit image files would hold them.
    return (torch.stack(images).clamp(0, 1) * 255).round() / 255


# ------------------------------------------------------------------------------ cases
@dataclass(frozen=True)
class Case:
    """How to build one model."""

    name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    #: Height and width that the network sees.
    size: int = 256
    #: For the class's `configure_pre_processor`; where empty, the constructor makes its own. Where
    #: the network's shape depends on the size it must be empty: `load_from_checkpoint` constructs
    #: with the default pre-processor, and restores the saved one only afterwards.
    transform: Mapping[str, Any] = field(default_factory=dict)
    prepare: Prepare = run_once
    images: int = 8


_SMALL = {"backbone": "resnet18", "pre_trained": False}
_AT_256 = {"image_size": (256, 256)}
_DINO_CROP = {"image_size": (256, 256), "crop_size": 224}
_DINOV2 = "vit_small_patch14_reg4_dinov2"

CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case(
            "AnomalyDINO",
            {"encoder_name": "vit_small_patch14_dinov2", "coreset_subsampling": True},
            252,
            {"image_size": (252, 252)},
            collect,
        ),
        Case("AnomalyVFM", size=256, transform=_AT_256, images=1),
        Case("Cfa", {"backbone": "resnet18"}, prepare=centroid),
        Case("Cflow", {**_SMALL, "coupling_blocks": 4}),
        Case("Csflow", {"cross_conv_hidden_channels": 64}, prepare=couplings),
        Case("Dfkde", _SMALL, prepare=collect, images=24),
        Case("Dfm", {**_SMALL, "layer": "layer3"}, prepare=collect),
        Case("Dinomaly", {"encoder_name": _DINOV2}, 224, _DINO_CROP),
        Case("Draem", images=2),
        Case("Dsr", prepare=codebooks, images=2),
        Case("EfficientAd", prepare=channel_statistics),
        Case("Fastflow", _SMALL),
        Case(
            "FoundAD",
            {"encoder_name": "dinov2_vit_small_14", "image_size": 252, "pred_depth": 3},
            252,
        ),
        Case("Fre", {**_SMALL, "layer": "layer3", "input_dim": 16384}),
        Case("Ganomaly", {"n_features": 16}),
        Case(
            "GeneralAD",
            {
                "backbone": "vit_small_patch14_dinov2.lvd142m",
                "layers": (12,),
                "pre_trained": False,
            },
            518,
        ),
        Case(
            "Glass",
            {
                **_SMALL,
                "input_shape": (256, 256),
                "pretrain_embed_dim": 256,
                "target_embed_dim": 256,
            },
            transform=_AT_256,
        ),
        Case("InpFormer", {"encoder_name": _DINOV2}, 224, _DINO_CROP),
        Case("L2BT", size=224),
        Case("MHPatchcore", _SMALL, 224, prepare=collect_thrice),
        Case("Padim", {**_SMALL, "n_features": 50}, prepare=collect),
        Case("Patchcore", {**_SMALL, "coreset_sampling_ratio": 0.05}, prepare=collect),
        Case("Patchflow", {**_SMALL, "crop_size": (256, 256)}, 768),
        Case(
            "Rad",
            {"backbone": "vit_small_patch16_dinov3", "pre_trained": False},
            224,
            {"image_size": (256, 256), "center_crop_size": (224, 224)},
            collect,
        ),
        Case("ReverseDistillation", _SMALL),
        Case("Stfpm"),
        Case("SuperADD", {"backbone": "vit_small_patch16_dinov3"}, 448, prepare=collect),
        Case("Supersimplenet", {"backbone": "resnet18"}),
        Case("Uflow", {"backbone": "resnet18"}, 448),
        Case("UniNet", {"student_backbone": "resnet50", "teacher_backbone": "resnet50"}, images=4),
        # Its constructor refuses where the package open_clip_torch is missing.
        Case("WinClip", {"class_name": "cloth"}, 240, prepare=describe, images=1),
    )
}

NOT_BUILDABLE: dict[str, str] = {
    "CFM": "wants a point cloud beside the image",
    "VlmAd": "asks a language model service; no network of its own",
}


# ------------------------------------------------------------------------------ building
@torch.no_grad()
def build(name: str, seed: int = 0) -> Any:
    """The model in eval mode, fitted, its post-processor filled: an AnomalibModule."""
    with offline():
        case = CASES[name]
        kind = getattr(import_module("anomalib.models"), name)
        torch.manual_seed(seed)
        chosen = dict(case.kwargs)
        if case.transform:
            chosen["pre_processor"] = kind.configure_pre_processor(**case.transform)
        module = kind(**chosen).eval()
        enliven(module.model)
        images = module.pre_processor.transform(textures(case.images, seed + 1))
        assert images.shape[-2:] == (case.size, case.size), images.shape
        case.prepare(module, images)
        module.eval()
        # A checkpoint keeps no strides, and other strides sum in another order.
        for part in module.modules():
            for key, value in part._buffers.items():  # noqa: SLF001
                part._buffers[key] = None if value is None else value.contiguous()  # noqa: SLF001
        fill_post_processor(module, *raw_scores(module, textures(8, seed + 2)))
    return module


@torch.no_grad()
def raw_scores(module: Any, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """A score for each image, and the maps where the model has any, before post-processing."""
    # One by one: batches are not neutral for all of them.
    outputs = [module.model(module.pre_processor.transform(image[None])) for image in images]
    # AnomalyVFM's network returns a bare pair.
    found = [
        one
        if hasattr(one, "pred_score")
        else SimpleNamespace(pred_score=one[0], anomaly_map=one[1])
        for one in outputs
    ]
    maps = None if found[0].anomaly_map is None else torch.cat([one.anomaly_map for one in found])
    scores = [one.anomaly_map.amax() if one.pred_score is None else one.pred_score for one in found]
    return torch.cat([score.reshape(1) for score in scores]).float(), maps


def fill_post_processor(module: Any, scores: Tensor, maps: Tensor | None) -> None:
    """Thresholds that tell the images apart, and the ranges seen."""
    post = module.post_processor
    ranked = scores.sort().values
    middle = len(ranked) * 5 // 8
    assert scores.isfinite().all(), scores
    assert ranked[middle] < ranked[middle + 1], f"the scores are all alike: {scores}"
    post._image_threshold.copy_((ranked[middle] + ranked[middle + 1]) / 2)  # noqa: SLF001
    post.image_min.copy_(ranked[0])
    post.image_max.copy_(ranked[-1])
    if maps is not None:
        pixels = maps.float().flatten()
        nth = max(int(0.97 * pixels.numel()), 1)
        post._pixel_threshold.copy_(pixels.kthvalue(nth).values)  # noqa: SLF001
        post.pixel_min.copy_(pixels.min())
        post.pixel_max.copy_(pixels.max())


def save(name: str, folder: Path, seed: int = 0) -> Path:
    """Build the model and write its checkpoint, FOLDER/NAME.ckpt."""
    return write(build(name, seed), folder / f"{name}.ckpt")


def write(module: Any, path: Path) -> Path:
    """Write a checkpoint as a Trainer does in `Engine.fit`."""
    from lightning.pytorch import Trainer

    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(module.configure_callbacks()),
        default_root_dir=path.parent,
    )
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return path


def reload(path: Path, name: str) -> Any:
    """The model of a checkpoint, by anomalib's own loader, in eval mode."""
    with offline():
        kind = getattr(import_module("anomalib.models"), name)
        return kind.load_from_checkpoint(path, map_location="cpu").eval()


# ------------------------------------------------------------------------------ command
def main() -> None:
    """Write every checkpoint, reload it, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", default=",".join(CASES))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    os.environ["TQDM_DISABLE"] = "1"
    logging.disable(logging.WARNING)
    for name in options.models.split(","):
        started = time.monotonic()
        try:
            found = measure(name, options.folder)
        except Exception as error:  # noqa: BLE001 - one that fails must not hide the others
            found = f"failed: {type(error).__name__}: {str(error)[:300]}"
        print(f"{name:20} {time.monotonic() - started:6.1f} s  {found}", flush=True)


def measure(name: str, folder: Path) -> str:
    """Save one model; its size, its range of scores, and what reloading changed."""
    module = build(name)
    path = write(module, folder / f"{name}.ckpt")
    two = textures(8, seed=7)[[0, 7]]
    scores, maps = raw_scores(module, two)
    again, maps_again = raw_scores(reload(path, name), two)
    off = float((scores - again).abs().max())
    if maps is not None and maps_again is not None:
        off = max(off, float((maps - maps_again).abs().max()))
    post = module.post_processor
    return (
        f"{path.stat().st_size / 1e6:6.1f} MB  scores {post.image_min:.4g} … {post.image_max:.4g}  "
        f"threshold {post.image_threshold:.4g}  "
        f"map {None if maps is None else tuple(maps.shape[1:])}  "
        f"{'reload ok' if off == 0 else f'RELOAD DIFFERS by {off:.2g}'}"
    )


if __name__ == "__main__":
    main()
