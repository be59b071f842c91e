"""Any model of timm that offers feature maps."""

from torch import Tensor

from vadexport.detectors.backbones.base import Backbone
from vadexport.errors import InputError, MissingPackageError
from vadexport.torchvision_operators import declare_torchvision_operators


class TimmBackbone(Backbone):
    """timm's `features_only` form of a model."""

    def __init__(self, name: str, levels: tuple[int, ...], *, pretrained: bool) -> None:
        super().__init__()
        declare_torchvision_operators()
        try:
            import timm
        except ImportError as error:  # of timm, or of torchvision, which it imports
            raise MissingPackageError(error.name or "timm", "timm") from None
        except RuntimeError as error:
            raise InputError(f"timm cannot be imported here: {error}") from error
        try:
            self.model = timm.create_model(
                name, features_only=True, out_indices=levels, pretrained=pretrained
            )
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"timm cannot make the backbone {name!r}: {reason}") from error
        self.channels = tuple(self.model.feature_info.channels())
        self.mean = tuple(self.model.default_cfg["mean"])
        self.std = tuple(self.model.default_cfg["std"])

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See the base class."""
        return tuple(self.model(image))


def create(name: str, levels: tuple[int, ...], *, pretrained: bool) -> Backbone:
    """Build timm's model `name`; see `create_backbone`."""
    return TimmBackbone(name, levels, pretrained=pretrained)
