"""`--approximate`: rewrites that move scores, as far as a limit allows, and what they moved."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Self

import onnx

from vadexport.backends.child import Child
from vadexport.building.climbing import Climber
from vadexport.building.inputs import BuildImages
from vadexport.calibration.approximation import Choice, Moved, choose_approximations
from vadexport.contract import ImageInput
from vadexport.listening import Listener
from vadexport.passes import (
    BEFORE_APPROXIMATIONS,
    BEFORE_INT8,
    FLOAT_SEARCH,
    BankProjection,
    GraphPass,
    Mahalanobis,
    apply_passes,
)
from vadexport.targets import AUTO, Target
from vadexport.verification.limits import Limits

#: Of the limits, what approximations may use up on the images that choose them. The rest is for
#: images that were not seen, and for what comes after.
_SHARE: Final = 1 / 3
_CHILD_TIMEOUT_S: Final = 1800


@dataclass(frozen=True)
class Rewrites:
    """The passes of a build.

    Attributes:
        before_search: that come first, in whatever way a bank is searched.
        search: that come behind them where it is searched in float32.
        words: of approximations among them, what each did, for a reader, by its name.
    """

    before_search: tuple[GraphPass, ...] = BEFORE_INT8
    search: tuple[GraphPass, ...] = FLOAT_SEARCH
    words: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, choice: Choice) -> Self:
        """With chosen approximations; a projected bank cannot be searched in INT8 any more."""
        chosen: list[GraphPass] = [each.rewrite for each in choice.made]
        early = [each for each in chosen if each.name != BankProjection.name]
        late = [each for each in chosen if each.name == BankProjection.name]
        words = {each.rewrite.name: each.words for each in choice.made}
        return cls((*BEFORE_APPROXIMATIONS, *early, Mahalanobis()), (*late, *FLOAT_SEARCH), words)

    def without(self, names: Collection[str]) -> Self:
        """All but those of some names."""
        kept = [
            tuple(each for each in passes if each.name not in names)
            for passes in (self.before_search, self.search)
        ]
        return replace(self, before_search=kept[0], search=kept[1])

    @property
    def float_search(self) -> tuple[GraphPass, ...]:
        """Those of `search` that may stand behind a search in INT8, for what it leaves."""
        return tuple(each for each in self.search if each.name != BankProjection.name)

    def to_json(self, *, searched: bool) -> dict[str, str]:
        """What the manifest holds of them, beside the precision of each part."""
        words = dict(self.words)
        if searched:
            words.pop(BankProjection.name, None)
        made = "; ".join(f"{name}: {did}" for name, did in words.items())
        return {"approximated": made} if made else {}

    def applied(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """A copy of a graph with all of them."""
        return apply_passes(model, (*self.before_search, *self.search))[0]


@dataclass(frozen=True)
class Approximating:
    """What `--approximate` allows.

    Attributes:
        limits: of the rung `approximated`.
        drift: that was asked for, in drift units; None leaves it to the targets' precisions.
        precisions: of the targets.
    """

    limits: Limits
    drift: float | None
    precisions: frozenset[str]

    @classmethod
    def of(cls, targets: Sequence[Target], drift: float | None) -> Self:
        """For some targets, which share one graph: the limits are the strictest of theirs."""
        precisions = frozenset(
            "fp32" if target.precision == AUTO and not target.mixed else target.precision
            for target in targets
        )
        each = [Limits.of_rung(precision) for precision in precisions]
        limits = min(each, key=lambda one: one.max_drift or 0.0)
        if drift is not None:
            limits = replace(limits, max_drift=drift, max_map_drift=max(drift, _maps(limits)))
        return cls(limits, drift, precisions)

    def bounds(self, unit: float) -> Moved:
        """What approximations may use up on the images that choose them."""
        return Moved(_SHARE * (self.limits.max_drift or 0.0) * unit, _SHARE * _maps(self.limits))

    def chosen(
        self,
        simplified: onnx.ModelProto,
        folder: Path,
        images: tuple[BuildImages, ImageInput],
        unit: float,
        rest: tuple[Listener, list[str]],
    ) -> Rewrites | None:
        """Choose what a graph allows, and note it; None where that is nothing.

        Args:
            simplified: the graph before all passes.
            folder: for the build's steps.
            images: of the build, and how the graph takes them.
            unit: of drift.
            rest: told of progress, and what is noted.
        """
        listener, notes = rest
        found, image_input = images
        path = folder / "before-approximations.onnx"
        onnx.save(apply_passes(simplified, BEFORE_APPROXIMATIONS)[0], path)
        drift = self.limits.max_drift or 0.0
        files = found.calibration.calibrate if found.calibration else ()
        with Child("approximations", timeout_s=_CHILD_TIMEOUT_S) as child:
            choice = child.run(
                choose_approximations,
                path,
                (files, found.checks),
                image_input,
                self.bounds(unit),
                progress=lambda done, total: listener.step("approximate", done, total),
            )
        notes += _words(choice, unit, f"{_SHARE:.0%} of {drift:g} drift units")
        return Rewrites.of(choice) if choice.made else None

    def behind(self, climber: Climber) -> Climber:
        """What checks the steps behind: they hold their own limits and the drift asked for."""
        if self.drift is None:
            return climber
        looser: Mapping[str, Limits] = {
            precision: limits.overridden(
                max_drift=(limits.max_drift or 0.0) + self.drift,
                max_map_drift=_maps(limits) + _maps(self.limits),
            )
            for precision in {*self.precisions, "fp32"}
            for limits in [climber.limits.get(precision) or Limits.of_rung(precision)]
        }
        return replace(climber, limits={**climber.limits, **looser})


def _maps(limits: Limits) -> float:
    return limits.max_map_drift or 0.0


def _words(choice: Choice, unit: float, limit: str) -> list[str]:
    """What was approximated and what was not."""
    found = [
        f"{each.rewrite.name}: {each.words}; so far raw scores moved by at most "
        f"{each.chosen_on.scores / unit:.2g} drift units and maps by {each.chosen_on.maps:.2g} of "
        f"their range on {choice.images} normal images and planted defects, by "
        f"{each.checked_on.scores / unit:.2g} and {each.checked_on.maps:.2g} on check images"
        for each in choice.made
    ]
    found += [f"{name}: no reduction keeps within {limit}" for name in choice.refused]
    nothing = "nothing to approximate: neither a large memory bank nor Mahalanobis distances"
    return found or [nothing]
