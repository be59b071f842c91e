"""Feature extractors, frozen: an image in, feature maps of the asked levels out."""

from vadexport.detectors.backbones.base import Backbone, create_backbone

__all__ = ["Backbone", "create_backbone"]
