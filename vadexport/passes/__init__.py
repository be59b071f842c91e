"""Graph rewrites: each a rule with its condition, one a file, exact up to rounding."""

from vadexport.passes.base import GraphPass, apply_passes
from vadexport.passes.gray_channels import GrayChannels
from vadexport.passes.mahalanobis import Mahalanobis
from vadexport.passes.map_as_matrices import MapAsMatrices
from vadexport.passes.nearest_neighbours import NearestNeighbours
from vadexport.passes.search_tiles import SearchTiles
from vadexport.passes.worst_neighbour import WorstNeighbour

#: Applied by `build`, in this order.
DEFAULT_PASSES: tuple[GraphPass, ...] = (
    GrayChannels(),
    MapAsMatrices(),
    NearestNeighbours(),
    WorstNeighbour(),
    SearchTiles(),
    Mahalanobis(),
)

#: What comes before `QuantisedSearch`, which takes the place of the others.
BEFORE_INT8: tuple[GraphPass, ...] = (
    GrayChannels(),
    MapAsMatrices(),
    NearestNeighbours(),
    Mahalanobis(),
)

#: The others: behind `BEFORE_INT8` they give what `DEFAULT_PASSES` do.
FLOAT_SEARCH: tuple[GraphPass, ...] = (WorstNeighbour(), SearchTiles())

__all__ = ["BEFORE_INT8", "DEFAULT_PASSES", "FLOAT_SEARCH", "GraphPass", "apply_passes"]
