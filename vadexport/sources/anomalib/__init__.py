"""Checkpoints of anomalib 2.x, whose reference is what `Engine.predict` gives."""

from vadexport.sources.anomalib.source import open_anomalib

__all__ = ["open_anomalib"]
