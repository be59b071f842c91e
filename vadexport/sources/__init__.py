"""Where trained detectors are read from."""

from vadexport.sources.base import Source
from vadexport.sources.registry import open_source, reference_opener
from vadexport.sources.spec import SourceSpec

__all__ = ["Source", "SourceSpec", "open_source", "reference_opener"]
