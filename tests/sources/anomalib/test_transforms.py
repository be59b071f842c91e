import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vadexport.contract import ImageInput
from vadexport.detectors.steps import EagerPreprocessing, GraphPreprocessing
from vadexport.errors import InputError
from vadexport.sources.anomalib.transforms import steps_of
from vadexport.torchvision_operators import declare_torchvision_operators

declare_torchvision_operators()

sides = st.integers(2, 90)


@st.composite
def transforms(draw):
    """A chain of torchvision's transforms as anomalib's pre-processors hold them."""
    from torchvision.transforms.v2 import CenterCrop, Compose, InterpolationMode, Normalize, Resize

    names = ["NEAREST", "NEAREST_EXACT", "BILINEAR", "BICUBIC"]
    mode = InterpolationMode[draw(st.sampled_from(names))]
    size = draw(st.one_of(st.tuples(sides, sides), st.integers(8, 60)))
    chain = [Resize(size, interpolation=mode, antialias=draw(st.booleans()))]
    if draw(st.booleans()):
        chain.append(CenterCrop(draw(st.one_of(st.tuples(sides, sides), sides))))
    if draw(st.booleans()):
        chain.append(Normalize([0.4, 0.5, 0.6], [0.2, 0.3, 0.25]))
    return Compose(chain)


@given(transform=transforms(), source=st.tuples(sides, sides), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_steps_are_torchvisions_transform(transform, source, seed):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (2, *source, 3), generator=generator, dtype=torch.uint8)
    floats = (image.permute(0, 3, 1, 2).float() / 255).contiguous()
    expected = transform(floats)
    steps = steps_of(transform)
    # uint8 and float images go the same way.
    for call, layout in ((image, "nhwc"), (floats, "float-nchw")):
        eager = EagerPreprocessing(steps)(call)
        torch.testing.assert_close(eager, expected, rtol=0, atol=5e-6)
        graph = GraphPreprocessing(steps, ImageInput(*source, 3, layout=layout))
        found = graph(call)
        torch.testing.assert_close(found, expected, rtol=0, atol=5e-6)
        assert graph.size == tuple(expected.shape[-2:])


def test_square_pad():
    from anomalib.data.transforms import SquarePad
    from torchvision.transforms.v2 import Compose, Resize

    transform = Compose([SquarePad(), Resize((20, 20))])
    for size in ((33, 50), (50, 33), (40, 40)):
        image = torch.rand(1, *size, 3)
        floats = image.permute(0, 3, 1, 2).contiguous()
        graph = GraphPreprocessing(steps_of(transform), ImageInput(*size, 3, layout="float-nchw"))
        torch.testing.assert_close(graph(floats), transform(floats), rtol=0, atol=1e-6)


def test_no_transform_is_no_step():
    assert steps_of(None) == ()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda v2: v2.Resize(20, max_size=30), "max_size"),
        (lambda v2: v2.Resize((20, 20), interpolation=v2.InterpolationMode.LANCZOS), "lanczos"),
        (lambda v2: v2.RandomHorizontalFlip(), "RandomHorizontalFlip"),
    ],
)
def test_what_no_graph_takes_is_named(make, words):
    from torchvision.transforms import v2

    with pytest.raises(InputError, match=words):
        steps_of(v2.Compose([make(v2)]))
