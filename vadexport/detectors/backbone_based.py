"""What families share that look at images through a pretrained backbone, and blur their maps."""

from typing import Protocol

from torch import Tensor

from vadexport.contract import ImageInput
from vadexport.detectors.backbones import create_backbone
from vadexport.detectors.base import Detector
from vadexport.detectors.maps import blur_kernel
from vadexport.detectors.preprocessing import PreprocessingConfig


class BackboneMethod(Protocol):
    """What the configurations of these families have in common.

    Attributes:
        backbone: see `create_backbone`.
        levels: of its features, that are compared.
        blur_sigma: of the map's Gaussian, in pixels of the network's input; 0 for none.
    """

    @property
    def backbone(self) -> str: ...  # noqa: D102 - the class says it

    @property
    def levels(self) -> tuple[int, ...]: ...  # noqa: D102

    @property
    def blur_sigma(self) -> float: ...  # noqa: D102


class BackboneDetector(Detector):
    """A detector that compares features of a frozen, pretrained backbone."""

    blur_kernel: Tensor

    def __init__(
        self,
        config: BackboneMethod,
        image_input: ImageInput,
        preprocessing: PreprocessingConfig | None = None,
        *,
        size: tuple[int, int] | None = None,
        pretrained: bool = False,
    ) -> None:
        """Make an unfitted detector.

        Args:
            config: choices of the method.
            image_input: camera images.
            preprocessing: to the network's input; made from the backbone's mean and std and
                `size` where it is None.
            size: the network's input, default `default_size`.
            pretrained: load the backbone's ImageNet weights.
        """
        backbone = create_backbone(config.backbone, config.levels, pretrained=pretrained)
        if preprocessing is None:
            size = size or self.default_size(image_input)
            preprocessing = PreprocessingConfig.of_network(backbone, image_input, size)
        super().__init__(config, image_input, preprocessing)
        self.backbone = backbone
        kernel = blur_kernel(config.blur_sigma, preprocessing.size)
        self.register_buffer("blur_kernel", kernel, persistent=False)

    @staticmethod
    def default_size(image_input: ImageInput) -> tuple[int, int]:
        """Height and width of the network's input where none is asked for: the camera's."""
        return image_input.height, image_input.width
