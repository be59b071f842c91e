"""The camera images of a source that does not say which it takes."""

from vadexport.contract import ImageInput
from vadexport.sources.spec import SourceSpec


def camera_input(spec: SourceSpec, size: tuple[int, int]) -> ImageInput:
    """What `spec` says of the camera; `size` and RGB of 8 bits where it leaves that open."""
    height, width = spec.image_size or size
    camera = spec.camera or "rgb"
    channels = 3 if camera == "rgb" else 1
    return ImageInput(height, width, channels, dtype="uint16" if camera == "gray16" else "uint8")
