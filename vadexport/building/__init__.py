"""`vadexport build`: from a trained detector to artifacts whose every step was checked."""

from vadexport.building.options import BuildOptions, BuildResult, BuiltTarget
from vadexport.building.pipeline import build

__all__ = ["BuildOptions", "BuildResult", "BuiltTarget", "build"]
