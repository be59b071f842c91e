"""How targets of a build search a memory bank: in INT8, or few directions, where that gains."""

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
from vadexport.machine import MOST_WITHOUT_VNNI
from vadexport.passes import BankProjection, apply_passes
from vadexport.passes.quantised_search import PrincipalSearch, QuantisedSearch
from vadexport.passes.search_plan import SearchPlan
from vadexport.targets import Target
from vadexport.verification.applied import AppliedPass

#: Of the drift unit, what a distance may grow by for how it is searched: in INT8, and in float32.
_SHARE: Final = 0.05
_EXACT_SHARE: Final = 1e-5
#: OpenVINO's products of int8 by int8 are faster than float32. ONNX Runtime gains where a pair
#: takes so many products less (benchmarks/search_heads.py): naming candidates takes it longer than
#: the smallest distance alone. Of searches in float32 as much is asked; they were not timed.
_LEAST_FEWER: Final = 200
_CHILD_TIMEOUT_S: Final = 1800

FLOAT_HEAD: Final = "fp32"
INT8_SEARCH: Final = "fp32, memory bank searched in int8, measured again in fp32"
FEW_DIRECTIONS: Final = "fp32, memory bank searched in few directions, measured again in all"


@dataclass
class BankSearch:
    """The search of a graph's memory banks, each as traced, or in INT8 or few directions.

    Attributes:
        path: ONNX file of the graph before a search is written.
        images: normal ones, whose queries are looked up.
        image_input: of the graph.
        rewrites: passes of the build.
        unit: of drift.
        listener: told of progress.
        notes: what else the user should know, added to.
        row_steps: that a row's largest value is rounded to in INT8; None for a search in float32 in
            few directions.
    """

    path: Path
    images: tuple[ImageFile, ...]
    image_input: ImageInput
    rewrites: Rewrites
    unit: float
    listener: Listener
    notes: list[str]
    row_steps: int | None

    @classmethod
    def of(
        cls,
        simplified: Path,
        path: Path,
        images: tuple[ImageFile, ...],
        image_input: ImageInput,
        rest: tuple[Rewrites, float, Listener, list[str]],
        row_steps: int | None,
    ) -> Self | None:
        """Of a graph before all passes; None where it has no bank that is large, or wide, enough.

        Args:
            simplified: its ONNX file.
            path: where what the passes before the search make of it is written.
            images: as the attribute.
            image_input: as the attribute.
            rest: passes, unit, listener and notes.
            row_steps: as the attribute.
        """
        before, _ = apply_passes(onnx.load(simplified), rest[0].before_search)
        widths = [each.bank.rows.shape[1] for each in large_searches(before).values()]
        gains_nothing = row_steps is None and min(widths, default=0) <= _LEAST_FEWER
        if not widths or gains_nothing:
            return None
        path.parent.mkdir(exist_ok=True)
        onnx.save(before, path)
        return cls(path, images, image_input, *rest, row_steps)

    @property
    def applied(self) -> AppliedPass:
        """The pass that writes the searches that suit."""
        return AppliedPass(self.pass_of(self.row_steps).name, len(self._plans))

    @property
    def words(self) -> str:
        """Of the score head, for the manifest."""
        return INT8_SEARCH if self.row_steps else FEW_DIRECTIONS

    def forms(self, target: Target) -> tuple[bool, ...]:
        """Whether a target's graph searches so: what is tried, one after the other."""
        if target.on_gpu:
            return (False,)
        gaining = self._gaining(self._found)
        gains = bool(self._found) and target.backend in gaining
        if gains or not self._found:
            self._tell(", ".join(gaining))
        return (True, False) if gains else (False,)

    def written(self, model: onnx.ModelProto, *, searched: bool) -> onnx.ModelProto:
        """A copy of a graph like that of `path` with its searches so, or else as in float."""
        passes = self.rewrites.search
        if searched:
            written = self.pass_of(self.row_steps)(self._plans)
            passes = (written, *self.rewrites.float_search)
        made, _ = apply_passes(model, passes)
        return made

    def given_up(self, target: Target) -> None:
        """Note that scores do not hold with the search."""
        self.notes.append(
            f"{target}: the memory bank is searched {self._plainly}, for scores do not hold "
            f"{self._how}"
        )

    @staticmethod
    def pass_of(row_steps: int | None) -> type[QuantisedSearch]:
        """The pass that writes such searches."""
        return PrincipalSearch if row_steps is None else QuantisedSearch

    @property
    def _how(self) -> str:
        return "in INT8" if self.row_steps else "in few directions"

    @property
    def _plainly(self) -> str:
        return "in float32" if self.row_steps else "in all directions"

    @property
    def _share(self) -> float:
        return _SHARE if self.row_steps else _EXACT_SHARE

    def _gaining(self, plans: Mapping[str, SearchPlan]) -> tuple[str, ...]:
        """Backends that gain from searches by these plans."""
        fewer = min((_fewer(plan) for plan in plans.values()), default=0)
        if fewer >= _LEAST_FEWER and self.row_steps != MOST_WITHOUT_VNNI:  # which are OpenVINO's
            return ("openvino", "onnxruntime")
        return ("openvino",) if self.row_steps else ()

    @property
    def _plans(self) -> dict[str, SearchPlan]:
        """Of the searches that suit; none where no backend gains."""
        return self._found if self._gaining(self._found) else {}

    @property
    def _found(self) -> dict[str, SearchPlan]:
        return {name: plan for name, plan in self._planned.items() if plan is not None}

    @cached_property
    def _planned(self) -> dict[str, SearchPlan | None]:
        with Child("search of the memory bank", timeout_s=_CHILD_TIMEOUT_S) as child:
            return child.run(
                plan_searches,
                self.path,
                self.images,
                self.image_input,
                self._share * self.unit,
                self.row_steps,
                progress=lambda done, total: self.listener.step("plan search", done, total),
            )

    def _tell(self, who: str) -> None:
        """Note, once, how banks are searched; `who` gains from that."""
        notes = [self._words(plan, who) for plan in self._planned.values()]
        if self._found and BankProjection.name in self.rewrites.words:
            notes.append(f"{who}: no {BankProjection.name} where the bank is searched so")
        self.notes += [note for note in notes if note not in self.notes]

    def _words(self, plan: SearchPlan | None, who: str) -> str:
        if plan is None:
            return (
                f"the memory bank is searched {self._plainly}, for {self._how} distances would "
                f"grow by more than {self._share:g} drift units"
            )
        candidates = f"{plan.shortlist} candidate{'s' if plan.shortlist > 1 else ''}"
        where = " in INT8" if self.row_steps else ""
        if plan.directions is not None:
            width, count = plan.directions.shape
            where += f" in {count} of {width} directions"
        return (
            f"{who}: the memory bank is searched{where}, {candidates} of blocks of "
            f"{plan.block} rows measured again in float32; of {plan.queries} patches "
            f"{plan.recall:.2%} found their nearest row, and distances grew by at most "
            f"{plan.error / self.unit:.2g} drift units, limit {self._share:g}"
        )


def _fewer(plan: SearchPlan) -> int:
    """How many products less a pair takes."""
    return 0 if plan.directions is None else plan.directions.shape[0] - plan.directions.shape[1]
