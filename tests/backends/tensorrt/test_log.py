import pytest

from vadexport.backends.tensorrt.compiler import _why_not
from vadexport.backends.tensorrt.library import TENSORRT_RTX
from vadexport.backends.tensorrt.log import new_log
from vadexport.errors import BackendError

# Lines are TensorRT's own, from reports of its users (NVIDIA/TensorRT issues 2643, 2913, 4258).

REFUSED = (
    "Requested amount of GPU memory ({} bytes) could not be allocated. There may not be enough "
    "free memory for allocation to succeed."
)
NO_KERNEL = (
    "IBuilder::buildSerializedNetwork: Error Code 10: Internal Error (Could not find any "
    "implementation for node {ForeignNode[/1/Constant_36_output_0.../1/Slice_4]}.)"
)
NO_CUDA = "CUDA initialization failure with error: 35. Please check your CUDA installation"


@pytest.fixture
def log():
    """A log that has been told lines, each with its severity."""
    trt = pytest.importorskip("tensorrt_rtx")

    def told(*lines):
        kept = new_log(trt)
        for severity, text in lines:
            kept.log(getattr(trt.ILogger.Severity, severity), text)
        return kept

    return told


def test_the_last_error_is_the_reason(log):
    assert log(("ERROR", "one"), ("ERROR", "two\n  lines"), ("WARNING", "w")).last() == "two lines"


def test_where_there_is_no_error_it_is_the_last_warning(log):
    assert log(("WARNING", "one"), ("INFO", "all is well"), ("WARNING", NO_CUDA)).last() == NO_CUDA
    assert log(("INFO", "all is well")).last() == "no reason given"


def test_a_builder_short_of_memory_names_size_and_options(log):
    kept = log(
        ("ERROR", "[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime"),
        ("WARNING", REFUSED.format(15485030400)),
        ("WARNING", REFUSED.format(1024)),
        ("ERROR", NO_KERNEL),
    )
    assert kept.memory_refused() == 15485030400
    words = _why_not(kept)
    assert words.startswith("15485 MB of GPU memory were asked for and are not free: a smaller --b")
    assert "--tensorrt workspace_mb=" in words
    assert words.endswith(f"({NO_KERNEL})")


def test_one_that_had_enough_speaks_of_no_memory(log):
    assert _why_not(log(("ERROR", NO_KERNEL))) == NO_KERNEL


def test_a_library_that_gives_nothing(log):
    def builder(kept):
        kept.log(type(kept).Severity.WARNING, NO_CUDA)
        raise TypeError("pybind11::init(): factory function returned nullptr")

    with pytest.raises(BackendError, match=r"^TensorRT-RTX 1\S+ cannot start: CUDA init.*driver"):
        TENSORRT_RTX.start(builder, log())
