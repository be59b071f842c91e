"""Preprocessing for graphs: the resize as two constant matrix products.

ONNX `Resize` with antialiasing is not computed alike by all backends, and some lack it. For a
fixed camera size a resize is linear and separable, so `A_h · X · A_wᵀ` gives the reference's
pixels everywhere. The matrices are read off PyTorch's own resize, applied to a unit matrix.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from vadexport.contract import ImageInput
from vadexport.detectors.preprocessing import PreprocessingConfig, in_unit_range


def resize_matrix(source: int, target: int) -> Tensor:
    """Matrix float32 [target, source] of PyTorch's antialiased bilinear resize of one axis."""
    unit = torch.eye(source, dtype=torch.float64)[None, None]
    resized = functional.interpolate(
        unit, (target, source), mode="bilinear", align_corners=False, antialias=True
    )
    return resized[0, 0].to(torch.float32)


class GraphPreprocessing(nn.Module):
    """Does what `detectors.preprocessing.Preprocessing` does, for one camera size."""

    rows: Tensor
    columns: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, config: PreprocessingConfig, image_input: ImageInput) -> None:
        super().__init__()
        height, width = config.size
        self.resizes = (image_input.height, image_input.width) != config.size
        self.register_buffer("rows", resize_matrix(image_input.height, height))
        self.register_buffer("columns", resize_matrix(image_input.width, width).T.contiguous())
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Preprocess `[N, H, W, C]`, uint8 or uint16, to `float32 [N, 3, h, w]`."""
        x = in_unit_range(image)
        if self.resizes:
            x = self.rows @ x @ self.columns
        return (x - self.mean) / self.std
