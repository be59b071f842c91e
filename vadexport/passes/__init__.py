"""Graph rewrites: each a rule with its condition, one a file, exact up to rounding.

Those of `APPROXIMATIONS` are not: `build` applies them only where it is asked to, as far as scores
allow.
"""

from typing import Final

from vadexport.passes.bank_projection import BankProjection
from vadexport.passes.bank_pruning import BankPruning
from vadexport.passes.base import Approximation, GraphPass, apply_passes
from vadexport.passes.channel_selection import ChannelSelection
from vadexport.passes.gray_channels import GrayChannels
from vadexport.passes.mahalanobis import Mahalanobis
from vadexport.passes.mahalanobis_rank import MahalanobisRank
from vadexport.passes.map_as_matrices import MapAsMatrices
from vadexport.passes.nearest_neighbours import NearestNeighbours
from vadexport.passes.search_tiles import SearchTiles
from vadexport.passes.shared_reshape import SharedReshape
from vadexport.passes.worst_neighbour import WorstNeighbour

#: Applied by `build`, in this order.
DEFAULT_PASSES: tuple[GraphPass, ...] = (
    GrayChannels(),
    ChannelSelection(),
    MapAsMatrices(),
    NearestNeighbours(),
    WorstNeighbour(),
    SearchTiles(),
    Mahalanobis(),
    SharedReshape(),
)

#: What comes before `QuantisedSearch`, which takes the place of the others.
BEFORE_INT8: tuple[GraphPass, ...] = (
    GrayChannels(),
    ChannelSelection(),
    MapAsMatrices(),
    NearestNeighbours(),
    Mahalanobis(),
    SharedReshape(),
)

#: The others: behind `BEFORE_INT8` they give what `DEFAULT_PASSES` do.
FLOAT_SEARCH: tuple[GraphPass, ...] = (WorstNeighbour(), SearchTiles())

#: What changes scores, in the order in which it is chosen.
APPROXIMATIONS: Final[tuple[type[Approximation], ...]] = (
    MahalanobisRank,
    BankPruning,
    BankProjection,
)

#: What comes before approximations, which are written into what it makes.
BEFORE_APPROXIMATIONS: tuple[GraphPass, ...] = (
    GrayChannels(),
    ChannelSelection(),
    MapAsMatrices(),
    NearestNeighbours(),
)

__all__ = [
    "APPROXIMATIONS",
    "BEFORE_APPROXIMATIONS",
    "BEFORE_INT8",
    "DEFAULT_PASSES",
    "FLOAT_SEARCH",
    "Approximation",
    "BankProjection",
    "GraphPass",
    "Mahalanobis",
    "apply_passes",
]
