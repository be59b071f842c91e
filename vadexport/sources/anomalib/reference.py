"""anomalib's own way from an image to scores, and the same in a form that graphs are made from."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from vadexport import contract
from vadexport.contract import ImageInput
from vadexport.detectors.exportable import Exportable, Scores
from vadexport.detectors.steps import Step, in_unit_range
from vadexport.errors import InputError
from vadexport.sources.anomalib.adapting import traceable
from vadexport.thresholds import Thresholds

#: Submodules of anomalib's models whose outputs their score heads compare, where a model has them.
_NETWORKS = ("feature_extractor", "teacher_model", "student_model", "encoder", "decoder")


class EngineReference(nn.Module):
    """What `Engine.predict` computes for an image, by anomalib's own code.

    The engine decodes an image to RGB from 0 to 1, takes it through the pre-processor's transform,
    antialiasing and all, the model, and the post-processor (`on_predict_batch_start`,
    `predict_step`, `on_predict_batch_end`).

    Args:
        module: an `AnomalibModule` in evaluation mode.
    """

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Score a call; the contract's outputs by name."""
        score, anomaly_map = predicted(self.module.model(self.prepared(image)))
        outputs = {contract.RAW_SCORE: score.reshape(-1)}
        batch = SimpleNamespace(
            pred_score=score, anomaly_map=anomaly_map, pred_label=None, pred_mask=None
        )
        if self.module.post_processor is not None:
            self.module.post_processor.post_process_batch(batch)
        outputs[contract.PRED_SCORE] = batch.pred_score.reshape(-1)
        if batch.pred_label is not None:
            outputs[contract.PRED_LABEL] = batch.pred_label.reshape(-1)
        if batch.anomaly_map is not None:
            outputs[contract.ANOMALY_MAP] = as_map(batch.anomaly_map)
        if batch.pred_mask is not None:
            outputs[contract.PRED_MASK] = as_map(batch.pred_mask)
        return {name: value.clone() for name, value in outputs.items()}

    def prepared(self, image: Tensor) -> Tensor:
        """What the model is given for a call: float32 `[N, 3, h, w]`."""
        x = in_unit_range(image)
        x = x.expand(-1, 3, -1, -1).contiguous()  # as torchvision's `to_image` lays images out
        transform = self.module.pre_processor.transform if self.module.pre_processor else None
        return x if transform is None else transform(x)


def predicted(found: Any) -> tuple[Tensor, Tensor | None]:
    """Score and map of what an anomalib model returns.

    A model that gives only a map is scored by the map's maximum, as the post-processor does.

    Raises:
        InputError: there is neither.
    """
    if isinstance(found, dict):
        score, anomaly_map = found.get("pred_score"), found.get("anomaly_map")
    elif hasattr(found, "pred_score"):
        score, anomaly_map = found.pred_score, found.anomaly_map
    elif isinstance(found, tuple) and len(found) == 2:
        score, anomaly_map = found
    else:
        raise InputError(
            f"the model gives a value of type {type(found).__name__}, neither score nor map"
        )
    if score is None:
        if anomaly_map is None:
            raise InputError("the model gives neither a score nor a map")
        score = as_map(anomaly_map).amax(dim=(1, 2, 3))
    return score, anomaly_map


def as_map(value: Tensor) -> Tensor:
    """A map `[N, h, w]` or `[N, 1, h, w]` as `[N, 1, h, w]`."""
    return value if value.ndim == 4 else value.unsqueeze(1)


class PostProcessing(nn.Module):
    """anomalib's `PostProcessor`, its thresholds and ranges constants.

    Args:
        processor: of a trained module; None for a module without one.

    Raises:
        InputError: a class of post-processors that computes something else.
    """

    def __init__(self, processor: Any) -> None:
        super().__init__()
        if processor is not None and type(processor).__name__ not in _POST_PROCESSORS:
            raise InputError(
                f"the post-processor {type(processor).__name__} cannot go into a graph: vadexport "
                f"takes {', '.join(_POST_PROCESSORS)}"
            )
        self.normalises = processor is not None and bool(processor.enable_normalization)
        self.decides = processor is not None and bool(processor.enable_thresholding)
        self.image = _Range.of(processor, "image") if self.normalises else None
        self.pixel = _Range.of(processor, "pixel") if self.normalises else None
        self.label_above = _float32(1.0 - float(processor.image_sensitivity)) if processor else 0.5
        self.mask_above = _float32(1.0 - float(processor.pixel_sensitivity)) if processor else 0.5

    def thresholds(self) -> Thresholds | None:
        """The same as the contract's thresholds; None where it makes no decisions."""
        if not self.decides:
            return None
        rule = f"anomalib, image sensitivity {1 - self.label_above:g}"
        if self.image is None:
            return Thresholds(
                self.label_above,
                self.mask_above,
                0.0,
                1.0,
                rule,
                self.label_above,
                normalises=False,
            )
        found = self.image
        return Thresholds(
            found.threshold,
            self.mask_above,
            found.minimum,
            found.maximum,
            rule,
            label_above=self.label_above,
        )

    def forward(self, scores: Scores) -> dict[str, Tensor]:
        """The contract's outputs, as many as there are."""
        raw = scores.raw_score
        pred_score = raw if self.image is None else self.image.normalised(raw)
        outputs = {contract.PRED_SCORE: pred_score, contract.RAW_SCORE: raw}
        if self.decides:
            outputs[contract.PRED_LABEL] = pred_score > self.label_above
        if scores.anomaly_map is not None:
            found = scores.anomaly_map
            found = found if self.pixel is None else self.pixel.normalised(found)
            outputs[contract.ANOMALY_MAP] = found
            if self.decides:
                outputs[contract.PRED_MASK] = found > self.mask_above
        return outputs


#: Post-processors that compute `PostProcessor`'s formula; they differ in how thresholds are set.
_POST_PROCESSORS = ("PostProcessor", "OneClassPostProcessor", "SuperADDPostProcessor")


class _Range:
    """A threshold and the range that scores are normalised by."""

    def __init__(self, threshold: float, minimum: float, maximum: float) -> None:
        self.threshold, self.minimum, self.maximum = threshold, minimum, maximum

    @classmethod
    def of(cls, processor: Any, what: str) -> "_Range | None":
        """Of the post-processor's `image` or `pixel` scores; None where it has none."""
        threshold = float(getattr(processor, f"{what}_threshold"))
        minimum = float(getattr(processor, f"{what}_min"))
        maximum = float(getattr(processor, f"{what}_max"))
        if math.isnan(minimum) or math.isnan(maximum):
            return None
        if math.isnan(threshold):
            threshold = _float32((maximum + minimum) / 2)
        return cls(threshold, minimum, maximum)

    def normalised(self, value: Tensor) -> Tensor:
        """In [0, 1], the threshold at ½; a step there where the range is nothing."""
        if self.maximum == self.minimum:
            above, below = value > self.threshold, value < self.threshold
            return 0.5 + 0.5 * above.to(value.dtype) - 0.5 * below.to(value.dtype)
        spread = _float32(self.maximum - self.minimum)
        return ((value - self.threshold) / spread + 0.5).clamp(0.0, 1.0)


def _float32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))


class AnomalibDetector(Exportable):
    """An anomalib model in the form that graphs are made from.

    Args:
        name: of its class.
        model: the torch model, adapted to tracing where it needs that.
        steps: of the pre-processor.
        post_processing: of the post-processor.
        image_input: camera images.
        facts: that `inspect` shows, see `facts_of`.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        steps: tuple[Step, ...],
        post_processing: PostProcessing,
        image_input: ImageInput,
        facts: Mapping[str, str],
    ) -> None:
        super().__init__()
        self._family, self._steps, self._facts = name, steps, facts
        self.model = model
        self.post_processing = post_processing
        self.image_input = image_input
        self.thresholds = post_processing.thresholds()
        self.fitted_on = ()
        self._map_size: tuple[int, int] | None = None
        self.register_buffer("normal_scores", torch.zeros(0))

    @property
    def family(self) -> str:
        """See the base class."""
        return self._family

    @property
    def steps(self) -> tuple[Step, ...]:
        """See the base class."""
        return self._steps

    @property
    def map_size(self) -> tuple[int, int] | None:
        """See the base class."""
        return self._map_size

    def measure_map(self, x: Tensor) -> None:
        """Find out the map's size from one preprocessed image.

        Raises:
            InputError: the model gives no score, or not one for each image.
        """
        with torch.inference_mode():
            found = self.scores(x)
        if found.raw_score.shape != x.shape[:1]:
            raise InputError(
                f"{self.family} gives {tuple(found.raw_score.shape)} scores for {len(x)} images"
            )
        if found.anomaly_map is not None:
            height, width = found.anomaly_map.shape[-2:]
            self._map_size = (height, width)

    def scores(self, x: Tensor) -> Scores:
        """See the base class."""
        with traceable(self.model), _caught_features(self.model) as features:
            score, anomaly_map = predicted(self.model(x.contiguous()))
        return Scores(
            score.reshape(x.shape[0]),
            None if anomaly_map is None else as_map(anomaly_map),
            tuple(features),
        )

    def outputs(self, scores: Scores) -> Mapping[str, Tensor]:
        """See the base class."""
        outputs: dict[str, Tensor] = self.post_processing(scores)
        return outputs

    def facts(self) -> dict[str, str | int | float]:
        """See the base class."""
        return {"framework": "anomalib", **self._facts}


def facts_of(module: Any) -> dict[str, str]:
    """The backbone of an `AnomalibModule`, and the sizes of what fitting left in it."""
    stored = dict(module.hparams)
    backbone = next((stored[name] for name in _BACKBONES if stored.get(name)), None)
    found = {} if backbone is None else {"backbone": str(backbone)}
    if stored.get("layers"):
        found["layers"] = ", ".join(map(str, stored["layers"]))
    for name, value in module.model.named_buffers():
        fitted = any(word in name for word in _FITTED)
        if fitted and value.ndim >= 2 and not any(name.startswith(each) for each in _NETWORKS):
            found[name.replace("_", " ").replace(".", " ")] = "×".join(map(str, value.shape))
    return found


#: Hyper-parameters that name a backbone, and words in the names of what fitting leaves behind.
_BACKBONES = ("backbone", "encoder_name", "student_backbone")
_FITTED = ("bank", "gaussian", "pca", "kde", "centroid", "covariance", "dataset")


@contextmanager
def _caught_features(model: nn.Module) -> Iterator[list[Tensor]]:
    """What the model's networks hand to its score head while it runs."""
    features: list[Tensor] = []

    def catch(_module: nn.Module, _inputs: Any, output: Any) -> None:
        features.extend(_tensors(output))

    hooks = [
        getattr(model, name).register_forward_hook(catch)
        for name in _NETWORKS
        if isinstance(getattr(model, name, None), nn.Module)
    ]
    try:
        yield features
    finally:
        for hook in hooks:
            hook.remove()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _tensors(each)
