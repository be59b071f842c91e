"""Graph rewrites: each a rule with its condition, one a file, exact up to rounding."""

from vadexport.passes.base import GraphPass, apply_passes
from vadexport.passes.map_as_matrices import MapAsMatrices
from vadexport.passes.nearest_neighbours import NearestNeighbours

#: Applied by `build`, in this order.
DEFAULT_PASSES: tuple[GraphPass, ...] = (MapAsMatrices(), NearestNeighbours())

__all__ = ["DEFAULT_PASSES", "GraphPass", "apply_passes"]
