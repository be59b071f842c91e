"""Mahalanobis distances by the directions that count most in them."""

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import ClassVar, Final, Self

import onnx

from vadexport.passes.base import GraphView, sort_nodes
from vadexport.passes.low_rank import LowRank, Spectrum, write_low_rank
from vadexport.passes.mahalanobis_forms import MahalanobisForm, find_forms

#: Of the channels, fewest first. A Cholesky factor reads three quarters.
_SHARES: Final = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 5 / 16, 3 / 8, 1 / 2, 5 / 8)
_STEP: Final = 4
#: Of the largest eigenvalue, what others that may be taken for equal are smaller by at most.
_FLAT: Final = 0.01


@dataclass(frozen=True)
class MahalanobisRank:
    """Of `A`'s eigenvalues the `rank` largest stay, all others become their geometric mean `c`.

    Then `δᵀ A δ = c‖δ‖² + ‖Vᵀδ‖²`, and `V` [D, rank] is read in place of `A`. Large eigenvalues are
    those of the directions that normal patches hardly vary in, where an anomaly counts most: to
    keep the others moves scores further at any rank. Only where all but the `rank`
    smallest are nearly equal, as with few images, those stay in their place: `c‖δ‖² − ‖Vᵀδ‖²`.

    It comes before `Mahalanobis`, which leaves what it writes alone.

    `spectra` keeps the eigenvalues of a graph's forms from one rank to the next.

    Must not apply where `Mahalanobis` must not, or to fewer channels than make the rank a gain.
    """

    rank: int
    spectra: MutableMapping[str, Spectrum] = field(default_factory=dict, compare=False, repr=False)
    name: ClassVar[str] = "mahalanobis-rank"

    @classmethod
    def candidates(cls, model: onnx.ModelProto) -> tuple[Self, ...]:
        """Settings for a graph, the lowest rank first; none where it has no such distances."""
        widths = {_width(form) for form in find_forms(model, GraphView(model))}
        ranks = {max(1, round(share * width / _STEP)) * _STEP for width in widths
                 for share in _SHARES}  # fmt: skip
        spectra: dict[str, Spectrum] = {}
        return tuple(cls(rank, spectra) for rank in sorted(ranks))

    def words(self, before: onnx.ModelProto, after: onnx.ModelProto) -> str:
        """What it did to a graph, for a reader."""
        del after
        widths = sorted({_width(form) for form in self._gaining(before)})
        return f"{self.rank} of {' and '.join(map(str, widths))} directions at each position"

    def apply(self, model: onnx.ModelProto) -> int:
        """See the base class."""
        count = 0
        for form in self._gaining(model):
            name = form.total.output[0]
            if name not in self.spectra:
                self.spectra[name] = Spectrum.of(form)
            spectrum = self.spectra[name]
            if spectrum.values.min() > 0:
                write_low_rank(model.graph, form, self._low_rank(spectrum))
                count += 1
        if count:
            sort_nodes(model.graph)
        return count

    def _low_rank(self, spectrum: Spectrum) -> LowRank:
        values = spectrum.values[:, self.rank :]
        is_flat = bool((values[:, 0] >= (1 - _FLAT) * values[:, -1]).all())
        return spectrum.flattened(self.rank) if is_flat else spectrum.raised(self.rank)

    def _gaining(self, model: onnx.ModelProto) -> list[MahalanobisForm]:
        forms = find_forms(model, GraphView(model))
        return [form for form in forms if self.rank <= max(_SHARES) * _width(form) + _STEP]


def _width(form: MahalanobisForm) -> int:
    return int(form.matrices.shape[1])
