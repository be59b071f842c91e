"""Training by gradient descent: seeded, stopped early, resumable after a kill."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from vadexport.contract import RAW_SCORE
from vadexport.detectors.base import Detector, normal_thresholds
from vadexport.detectors.normal_images import NormalImages
from vadexport.detectors.seeds import seeded_generator
from vadexport.detectors.stages import ALL_STEPS, NO_BETTER, OUT_OF_TIME, Stage
from vadexport.detectors.training_state import State, read_state, remove_states, write_state
from vadexport.errors import InputError

#: Held-out images that each evaluation looks at, at most.
_EVALUATED = 64

#: The loss of a batch `[B, 3, h, w]`, a scalar; any randomness comes from the generator (CPU).
Loss = Callable[[Tensor, torch.Generator], Tensor]


class TrainingProgress(Protocol):
    """`Progress` that may also be told a detail, here the loss."""

    def __call__(self, name: str, done: int, total: int, detail: str = "") -> None:
        """Called with the step's name, what is done, how much there is, and the loss."""


def no_progress(name: str, done: int, total: int, detail: str = "") -> None:
    """Tell nobody."""
    del name, done, total, detail


def _tell_nobody(text: str) -> None:
    del text


@dataclass(frozen=True)
class Training:
    """How a fit that trains is run, whatever the family.

    Attributes:
        max_minutes: training stops after this long, this run alone counted; None for no limit.
        state: where progress is kept, so that a killed fit goes on; None keeps none. A family
            that trains in stages has a file each, this name and the stage's.
        warn: told what may spoil the result.
        note: told what else a user should know.
        save_every_s: seconds from one write of the progress to the next.
    """

    max_minutes: float | None = None
    state: Path | None = None
    warn: Callable[[str], None] = _tell_nobody
    note: Callable[[str], None] = _tell_nobody
    save_every_s: float = 20.0

    def __post_init__(self) -> None:
        if self.max_minutes is not None and not 0 < self.max_minutes < math.inf:
            raise InputError(f"the minutes of training are above 0, not {self.max_minutes:g}")

    def part(self, share: float) -> "Training":
        """For one stage of several: `share` of the minutes."""
        minutes = None if self.max_minutes is None else self.max_minutes * share
        return replace(self, max_minutes=minutes)

    def clear(self) -> None:
        """Remove what was kept for a resumption: the fit succeeded."""
        if self.state is not None:
            remove_states(self.state)


class Trained(Protocol):
    """What the configurations of families that train have in common; see `Plan`."""

    @property
    def steps(self) -> int: ...  # noqa: D102 - the class says it

    @property
    def batch_size(self) -> int: ...  # noqa: D102

    @property
    def learning_rate(self) -> float: ...  # noqa: D102

    @property
    def seed(self) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class Plan:
    """What one stage of training does.

    Attributes:
        name: of the stage, for progress and for the state's file.
        identity: what else decides the result (family, configuration, size), plain JSON; a state
            of another identity, or of other images, is not resumed.
        steps: at most.
        batch_size: images a step.
        learning_rate: of Adam at the start; it falls to zero along a cosine.
        seed: of batches and of the generator that the loss is given.
        evaluate_every: steps from one evaluation on held-out images to the next.
        patience: evaluations without a better loss after which training stops.
        weight_decay: of Adam.
    """

    name: str
    identity: dict[str, Any]
    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    evaluate_every: int = 25
    patience: int = 8
    weight_decay: float = 0.0

    @classmethod
    def of(cls, detector: Detector, name: str, config: Trained, **others: Any) -> Self:
        """The plan of `detector`'s stage `name` by its `config`; `others` are further fields."""
        fields: dict[str, Any] = {
            "steps": config.steps,
            "batch_size": config.batch_size,
            "learning_rate": config.learning_rate,
            "seed": config.seed,
            **others,
        }
        return cls(name=name, identity=detector.identity(), **fields)


def training_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train(
    module: nn.Module,
    loss: Loss,
    images: NormalImages,
    plan: Plan,
    training: Training,
    progress: TrainingProgress,
) -> Stage:
    """Train `module` by Adam (Kingma & Ba 2015) on batches of normal images.

    Everything random follows from the plan's seed and the step's number, so that a resumed run
    gives what an uninterrupted one would have. The module ends up in evaluation mode with the
    weights of the lowest loss on the held-out images. A limit on time shortens the learning rate's
    way to zero accordingly; what ran out of time goes on when it is resumed.

    Args:
        module: its parameters that require gradients are trained, on the device they are on.
        loss: of a batch; the module is in training mode, or in evaluation mode on held-out images.
        images: to train on.
        plan: of this stage.
        training: limits and where the state is kept.
        progress: told about each step and its loss.

    Raises:
        InputError: the loss is not finite.
    """
    return _Run(module, loss, images, plan, training).go(progress)


class _Run:
    """One stage while it trains."""

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        images: NormalImages,
        plan: Plan,
        training: Training,
    ) -> None:
        self.module = module
        self.loss = loss
        self.images = images
        self.plan = plan
        self.training = training
        self.optimizer = torch.optim.Adam(
            [weight for weight in module.parameters() if weight.requires_grad],
            lr=plan.learning_rate,
            weight_decay=plan.weight_decay,
        )
        self.state = State(self._digest())
        self.path = (
            training.state.with_name(f"{training.state.name}-{plan.name}")
            if training.state
            else None
        )

    def go(self, progress: TrainingProgress) -> Stage:
        self._resume()
        state, plan = self.state, self.plan
        started = saved = time.monotonic()
        limit = math.inf if self.training.max_minutes is None else self.training.max_minutes * 60
        out_of_time = False
        while not (state.finished or out_of_time):
            value = self._step((time.monotonic() - started) / limit)
            state.step += 1
            now = time.monotonic()
            out_of_time = now - started >= limit
            all_steps = state.step >= plan.steps
            if out_of_time or all_steps or state.step % plan.evaluate_every == 0:
                self._evaluate()
            state.finished = all_steps or state.stale >= plan.patience
            over = state.finished or out_of_time
            if over or now - saved >= self.training.save_every_s:
                self._save()
                saved = now
            total = state.step if over else plan.steps
            progress(plan.name, state.step, total, f"loss {value:.4g}")
        self.module.load_state_dict(state.best)
        self.module.eval()
        return Stage(
            plan.name, state.step, plan.steps, state.best_step, state.best_loss, self._ended()
        )

    def _ended(self) -> str:
        if not self.state.finished:
            return OUT_OF_TIME
        return ALL_STEPS if self.state.step >= self.plan.steps else NO_BETTER

    def _step(self, time_share: float) -> float:
        """One step of Adam, so much of the time being over; returns the loss before it."""
        plan, step = self.plan, self.state.step
        generator = seeded_generator(plan.seed, step + 1)
        pool = self.images.training
        drawn = torch.randperm(len(pool), generator=generator)[: plan.batch_size].tolist()
        for group in self.optimizer.param_groups:
            share = min(1.0, max(step / plan.steps, time_share))
            group["lr"] = plan.learning_rate * (1 + math.cos(math.pi * share)) / 2
        self.module.train()
        self.optimizer.zero_grad()
        loss = self.loss(self._batch([pool[index] for index in drawn]), generator)
        value = self._finite(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return value

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Judge the weights by the held-out images, always with the same random numbers."""
        state, plan = self.state, self.plan
        self.module.eval()
        indices = self.images.held_out[:_EVALUATED]
        generator = seeded_generator(plan.seed, 0)
        total = 0.0
        for start in range(0, len(indices), plan.batch_size):
            part = indices[start : start + plan.batch_size]
            total += self._finite(self.loss(self._batch(part), generator)) * len(part)
        loss = total / len(indices)
        if loss < state.best_loss:
            state.best_loss, state.best_step, state.stale = loss, state.step, 0
            state.best = _copy(self.module.state_dict())
        else:
            state.stale += 1

    def _batch(self, indices: Sequence[int]) -> Tensor:
        # Depthwise convolutions train several times faster on a CPU in this layout.
        return self.images.batch(indices).contiguous(memory_format=torch.channels_last)

    def _finite(self, loss: Tensor) -> float:
        value = float(loss.detach())
        if not math.isfinite(value):
            raise InputError(
                f"the loss of {self.plan.name!r} is {value} in step {self.state.step + 1}: "
                "lower the learning rate, or look for images that are damaged"
            )
        return value

    def _digest(self) -> str:
        """Of all that decides the result."""
        shapes = {name: list(value.shape) for name, value in self.module.state_dict().items()}
        parts = [asdict(self.plan), shapes, self.images.digest]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _resume(self) -> None:
        if self.path is None or not self.path.exists():
            return
        untrained = _copy(self.module.state_dict())
        try:
            tensors = read_state(self.path, self.state)
            self.module.load_state_dict(tensors.model)
            self.optimizer.load_state_dict(
                {**self.optimizer.state_dict(), "state": tensors.optimizer}
            )
        except (InputError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            self.training.warn(f"training starts anew: {self.path.name} cannot be used: {reason}")
            self.state = State(self.state.digest)
            self.module.load_state_dict(untrained)
            return
        self.training.note(f"{self.plan.name}: going on after step {self.state.step}")
        device = next(self.module.parameters()).device
        self.state.best = {name: value.to(device) for name, value in self.state.best.items()}

    def _save(self) -> None:
        if self.path is None:
            return
        model, moments = self.module.state_dict(), self.optimizer.state_dict()["state"]
        try:
            write_state(self.path, self.state, model, moments)
        except InputError as error:  # a full disk need not end the training itself
            self.training.warn(str(error))


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}


def finish(detector: Detector, *stages: Stage) -> None:
    """Bring a detector that went through `stages` to the CPU, in evaluation mode and frozen."""
    detector.stages = stages
    detector.cpu().eval().requires_grad_(requires_grad=False)


def set_thresholds(
    detector: Detector, images: NormalImages, quantile: float, progress: TrainingProgress
) -> None:
    """Set the thresholds and normal scores of a trained detector by the held-out images.

    Args:
        detector: on the CPU, in evaluation mode.
        images: that it was trained on, of which the held-out share is scored.
        quantile: fraction that stays below the thresholds.
        progress: told about each image.

    Raises:
        InputError: a score is not finite.
    """
    scores, maxima = [], []
    with torch.inference_mode():
        for number, index in enumerate(images.held_out, 1):
            x = images.batch([index])
            score, anomaly_map = detector.score(x, detector.network(x))
            scores.append(score)
            maxima.append(anomaly_map.amax().view(1))
            progress("threshold", number, len(images.held_out))
    # Clones: what inference mode made cannot be trained or saved like other tensors.
    detector.normal_scores = torch.cat(scores).clone()
    if not detector.normal_scores.isfinite().all():
        raise InputError(f"a {RAW_SCORE} of the normal images is not finite")
    found = normal_thresholds(detector.normal_scores, torch.cat(maxima), quantile)
    count = len(images.held_out)
    which = (
        f"{count} held-out normal images"
        if count < len(images)
        else f"{count} normal images, which trained it too"
    )
    detector.thresholds = replace(found, rule=f"{quantile:g} quantile of {which}")
