"""The searches of a build's memory bank: each is planned once, for all targets that share it."""

from dataclasses import dataclass, field
from pathlib import Path

import onnx

from vadexport.building.approximating import Rewrites
from vadexport.building.bank_search import BankSearch
from vadexport.building.climbing import Climber, Graph
from vadexport.contract import ImageInput
from vadexport.errors import VadexportError
from vadexport.images import ImageFile
from vadexport.listening import Listener
from vadexport.machine import MOST_WITHOUT_VNNI
from vadexport.passes.search_plan import STEPS
from vadexport.targets import Target
from vadexport.verification.proxy import GRAPH_FILE


@dataclass
class Searches:
    """How graphs of a build search its memory bank, if it has a large one.

    Attributes:
        simplified: ONNX file of the graph before all passes.
        base: the float graph, searched as the passes of a build have it.
        images: normal ones, whose queries are looked up; without any, nothing is planned.
        image_input: of the graph.
        rewrites: passes of the build.
        left_out: names of passes that are not applied.
        climber: checks what comes of it.
        work: folder of the build's steps.
        listener: told of progress.
        notes: what else the user should know, added to.
    """

    simplified: Path
    base: Graph
    images: tuple[ImageFile, ...]
    image_input: ImageInput
    rewrites: Rewrites
    left_out: tuple[str, ...]
    climber: Climber
    work: Path
    listener: Listener
    notes: list[str]
    _planned: dict[int | None, BankSearch | None] = field(default_factory=dict, init=False)
    _few_directions: Graph | None = field(default=None, init=False)

    def int8(self, *, reduce_range: bool) -> BankSearch | None:
        """The search in INT8; None where there is no large bank.

        Args:
            reduce_range: whether rows take 7 bits.
        """
        return self._search(MOST_WITHOUT_VNNI if reduce_range else STEPS)

    def graph(self, target: Target) -> Graph:
        """The float graph, a large bank in it searched in few directions where that gains."""
        try:
            found = self._in_few_directions(target)
        except VadexportError as error:  # it can only gain time, and fails no target
            self._planned[None] = found = None
            self.notes.append(f"the memory bank is searched in all directions: {error}")
        return found or self.base

    def _in_few_directions(self, target: Target) -> Graph | None:
        """None where nothing is gained, or scores do not hold."""
        bank = self._search(None)
        if bank is None or True not in bank.forms(target):
            return None
        if self._few_directions is None:
            path = self.work / "few-directions" / GRAPH_FILE
            path.parent.mkdir(exist_ok=True)
            onnx.save(bank.written(onnx.load(bank.path), searched=True), path)
            rung = self.climber.climb_graph("quantised", path.parent, "fp32")
            precision = {**self.base.precision, "score head": bank.words}
            rungs = (*self.base.rungs, rung)
            self._few_directions = Graph(path, rungs, precision, search_pass=bank.applied)
        if self._few_directions.rungs[-1].held:
            return self._few_directions
        bank.given_up(target)
        return None

    def _search(self, row_steps: int | None) -> BankSearch | None:
        if row_steps not in self._planned:
            self._planned[row_steps] = self._made(row_steps)
        return self._planned[row_steps]

    def _made(self, row_steps: int | None) -> BankSearch | None:
        if not self.images or self.base.rungs[-1].name == "simplified":
            return None
        if BankSearch.pass_of(row_steps).name in self.left_out:
            return None
        return BankSearch.of(
            self.simplified,
            self.work / "before-search" / GRAPH_FILE,
            self.images,
            self.image_input,
            (self.rewrites, self.climber.unit.value, self.listener, self.notes),
            row_steps,
        )
