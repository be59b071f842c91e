"""How INT8 targets of a build search a memory bank: in INT8 where the backend gains from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Self

import onnx

from vadexport.backends.child import Child
from vadexport.building.approximating import Rewrites
from vadexport.calibration.bank_search import large_searches, plan_searches
from vadexport.contract import ImageInput
from vadexport.images import ImageFile
from vadexport.listening import Listener
from vadexport.passes import BankProjection, apply_passes
from vadexport.passes.quantised_search import QuantisedSearch
from vadexport.passes.search_plan import SearchPlan
from vadexport.targets import Target

#: Of the drift unit, what a distance may grow by for the rounding of its search.
_SHARE: Final = 0.05
#: OpenVINO's products of int8 by int8 are faster than float32. ONNX Runtime gains where a pair
#: takes so many products less (benchmarks/search_heads.py): naming candidates takes it longer than
#: the smallest distance alone.
_LEAST_FEWER: Final = 200
_CHILD_TIMEOUT_S: Final = 1800

FLOAT_HEAD: Final = "fp32"
INT8_SEARCH: Final = "fp32, memory bank searched in int8, measured again in fp32"


@dataclass
class BankSearch:
    """The search of a graph's memory banks, each in float or in INT8.

    Attributes:
        path: ONNX file of the graph before either is written.
        images: normal ones, whose queries are looked up.
        image_input: of the graph.
        rewrites: passes of the build.
        unit: of drift.
        listener: told of progress.
        notes: what else the user should know, added to.
    """

    path: Path
    images: tuple[ImageFile, ...]
    image_input: ImageInput
    rewrites: Rewrites
    unit: float
    listener: Listener
    notes: list[str]

    @classmethod
    def of(
        cls,
        simplified: Path,
        path: Path,
        images: tuple[ImageFile, ...],
        image_input: ImageInput,
        rest: tuple[Rewrites, float, Listener, list[str]],
    ) -> Self | None:
        """Of a graph before all passes; None where it has no bank that is large enough.

        Args:
            simplified: its ONNX file.
            path: where what the passes before the search make of it is written.
            images: as the attribute.
            image_input: as the attribute.
            rest: passes, unit, listener and notes.
        """
        before, _ = apply_passes(onnx.load(simplified), rest[0].before_search)
        if not large_searches(before):
            return None
        path.parent.mkdir(exist_ok=True)
        onnx.save(before, path)
        return cls(path, images, image_input, *rest)

    @property
    def places(self) -> int:
        """Searches that INT8 suits."""
        return len(self._plans)

    def forms(self, target: Target) -> tuple[bool, ...]:
        """Whether a target's graph searches in INT8: what is tried, one after the other."""
        gains = not target.on_gpu and self._plans and target.backend in _gaining(self._plans)
        return (True, False) if gains else (False,)

    def written(self, model: onnx.ModelProto, *, int8: bool) -> onnx.ModelProto:
        """A copy of a graph like that of `path` with its searches in INT8, or else in float."""
        passes = self.rewrites.search
        if int8:
            passes = (QuantisedSearch(self._plans), *self.rewrites.float_search)
        made, _ = apply_passes(model, passes)
        return made

    def given_up(self, target: Target) -> None:
        """Note that scores do not hold with the search in INT8."""
        self.notes.append(
            f"{target}: the memory bank is searched in float32, for scores do not hold in INT8"
        )

    @cached_property
    def _plans(self) -> dict[str, SearchPlan]:
        with Child("search of the memory bank", timeout_s=_CHILD_TIMEOUT_S) as child:
            plans = child.run(
                plan_searches,
                self.path,
                self.images,
                self.image_input,
                _SHARE * self.unit,
                progress=lambda done, total: self.listener.step("plan search", done, total),
            )
        found = {name: plan for name, plan in plans.items() if plan is not None}
        who = ", ".join(_gaining(found))
        for plan in plans.values():
            self.notes.append(self._words(plan, who))
        if found and BankProjection.name in self.rewrites.words:
            self.notes.append(f"{who}: no {BankProjection.name} where INT8 searches the bank")
        return found

    def _words(self, plan: SearchPlan | None, who: str) -> str:
        if plan is None:
            return (
                "the memory bank is searched in float32, for in INT8 distances would grow by more "
                f"than {_SHARE:.0%} of the drift unit"
            )
        candidates = f"{plan.shortlist} candidate{'s' if plan.shortlist > 1 else ''}"
        where = ""
        if plan.directions is not None:
            width, count = plan.directions.shape
            where = f" in {count} of {width} directions"
        return (
            f"{who}: the memory bank is searched in INT8{where}, {candidates} of blocks of "
            f"{plan.block} rows measured again in float32; of {plan.queries} patches "
            f"{plan.recall:.2%} found their nearest row, and distances grew by at most "
            f"{plan.error / self.unit:.2g} drift units, limit {_SHARE:g}"
        )


def _gaining(plans: Mapping[str, SearchPlan]) -> tuple[str, ...]:
    """Backends that gain from searches by these plans."""
    fewer = [
        plan.directions.shape[0] - plan.directions.shape[1] if plan.directions is not None else 0
        for plan in plans.values()
    ]
    return ("openvino", "onnxruntime") if min(fewer, default=0) >= _LEAST_FEWER else ("openvino",)
