"""Where trained detectors are read from."""

from vadexport.sources.base import Source
from vadexport.sources.registry import open_source, reference_opener

__all__ = ["Source", "open_source", "reference_opener"]
