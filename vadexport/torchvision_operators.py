"""Let torchvision be imported beside a torch that it was not compiled for.

Package indexes offer torchvision for CUDA; beside a torch for the CPU its compiled operators cannot
be loaded, and then `import torchvision`, and with it that of timm, diffusers and anomalib, fails
for lack of two of them. No detector runs these operators: they find boxes of objects. Declaring
them is enough.
"""

import importlib.util
import sys
import warnings
from functools import cache
from typing import Final

_SCHEMAS: Final = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@cache
def declare_torchvision_operators() -> object:
    """Import torchvision, if it is installed; where that fails for its operators, declare them.

    Returns:
        What keeps the declarations alive; None where nothing had to be done.
    """
    if importlib.util.find_spec("torchvision") is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on image formats that only its operators read
        try:
            import torchvision
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise
        else:
            return None
        import torch

        for name in [each for each in sys.modules if each.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for schema in _SCHEMAS:
            library.define(schema)  # type: ignore[no-untyped-call]
        import torchvision  # noqa: F401
    return library
