"""How INT8 targets of a build compute Mahalanobis distances: in bfloat16 where that gains."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import onnx
from onnx import TensorProto

from vadexport.backends.child import Child
from vadexport.backends.openvino.bfloat16 import has_fast_bfloat16
from vadexport.calibration.judging import Bounds, Judged
from vadexport.errors import BackendError
from vadexport.passes.mahalanobis_products import constant_products
from vadexport.passes.narrow import narrowed
from vadexport.targets import Target
from vadexport.verification.proxy import GRAPH_FILE

#: Of the drift unit, what the score of a normal image may move by.
_SHARE: Final = 0.05
_CHILD_TIMEOUT_S: Final = 1800
_TARGET: Final = Target("openvino", "int8")

NARROW_HEAD: Final = "fp32, Mahalanobis distances in bf16"


@dataclass
class NarrowHead:
    """Products of a score head by constant matrices, which take as long as reading these.

    Attributes:
        base: ONNX file of the float graph.
        network_nodes: names of its nodes that are no part of the head.
        judge: says what an ONNX file, compiled for a target, does to scores and maps.
        bounds: that must hold, but for the drift, whose limit is narrower here.
        unit: of drift.
        notes: what else the user should know, added to.
    """

    base: Path
    network_nodes: frozenset[str]
    judge: Callable[[Path, Target], Judged]
    bounds: Bounds
    unit: float
    notes: list[str]

    def products(self, target: Target) -> frozenset[str]:
        """Names of those that a target computes in bfloat16."""
        gains = (target.backend, target.device) == (_TARGET.backend, _TARGET.device)
        return self._products if gains else frozenset()

    def written(self, path: Path, target: Target) -> Path:
        """The file of a graph with them in bfloat16; the one given where there are none."""
        products = self.products(target)
        return self._narrow(path, products) if products else path

    @cached_property
    def _products(self) -> frozenset[str]:
        """Names of their nodes; none where scores do not hold, or the processor is not fast."""
        found = constant_products(onnx.load(self.base), self.network_nodes)
        if not found or not fast_bfloat16():
            return frozenset()
        try:
            judged = self.judge(self._narrow(self.base, found), _TARGET)
        except BackendError as error:
            self.notes.append(f"openvino: Mahalanobis distances stay float32: {error}")
            return frozenset()
        moved = (
            f"moves scores of normal images by {judged.drift / self.unit:.2g} drift units, limit "
            f"{_SHARE:g}"
        )
        beyond = judged.beyond(replace(self.bounds, drift=_SHARE * self.unit))
        if beyond:
            self.notes.append(
                "openvino: Mahalanobis distances stay float32: in bfloat16, which "
                f"{moved}, too much changes on check images and planted defects "
                f"({'; '.join(beyond)})"
            )
            return frozenset()
        self.notes.append(f"openvino: Mahalanobis distances in bfloat16, which {moved}")
        return found

    @staticmethod
    def _narrow(path: Path, products: frozenset[str]) -> Path:
        made = path.parent.with_name(f"{path.parent.name}-narrow-head") / GRAPH_FILE
        if not made.exists():
            made.parent.mkdir()
            onnx.save(narrowed(onnx.load(path), products, TensorProto.BFLOAT16), made)
        return made


def fast_bfloat16() -> bool:
    """Whether OpenVINO is fast at bfloat16 on this processor."""
    with Child("OpenVINO's capabilities", timeout_s=_CHILD_TIMEOUT_S) as child:
        return child.run(has_fast_bfloat16)
