"""Compile trained visual anomaly detectors and prove that their scores held."""

__version__ = "0.1.0"
