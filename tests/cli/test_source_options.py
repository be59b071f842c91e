import click
import pytest

from vadexport import building, evaluating, verifying
from vadexport.cli.build import command as build
from vadexport.cli.console import Console
from vadexport.cli.evaluate import command as evaluate
from vadexport.cli.inspect import command as inspect
from vadexport.cli.verify import command as verify
from vadexport.detectors.steps import CenterCrop, Normalise, Resize, SwapChannels
from vadexport.errors import InputError
from vadexport.sources import SourceSpec
from vadexport.targets import Target

FILE = """
[source]
location = "stored.onnx"
camera = "gray"
threshold = 1.5
[source.preprocess]
resize = [64, 96]
colour_order = "bgr"
[calibration]
images = "train"
[build]
output = "out"
targets = ["onnxruntime:fp32", "openvino:int8"]
batch = "dynamic"
input_layout = "float-nchw"
threads = 3
[verify]
images = "test"
[limits]
max_drift = 0.25
min_speedup = 2
"""


class Reached(Exception):  # noqa: N818 - no error, but the end of what is tested
    """A command got as far as its pipeline."""


@pytest.fixture
def options_of(monkeypatch):
    """The options that a command line makes of its words, its pipeline left out."""
    caught = []

    def stop(options, _listener):
        caught.append(options)
        raise Reached

    for module, name in ((building, "build"), (verifying, "verify"), (evaluating, "evaluate")):
        monkeypatch.setattr(module, name, stop)

    def run(command, *words):
        with pytest.raises(Reached):
            command.main([str(word) for word in words], standalone_mode=False, obj=Console())
        return caught[-1]

    return run


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "vadexport.toml"
    path.write_text(FILE)
    return path


def refusal(command, *words):
    with pytest.raises((click.ClickException, InputError)) as error:
        command.main([str(word) for word in words], standalone_mode=False, obj=Console())
    caught = error.value
    return caught.format_message() if isinstance(caught, click.ClickException) else str(caught)


ALL = [
    *("--model", "Padim", "--image-size", "480x640", "--camera", "gray16", "--resize", "256x320"),
    *("--interpolation", "bicubic", "--no-antialias", "--crop", "224", "--mean", "0.5,0.25,0"),
    *("--std", "1,0.5,2e-1", "--bgr", "--outputs", "score=a,map=b", "--threshold", "-0.5"),
    *("--pixel-threshold", "7", "--trust-pickle"),
]


@pytest.mark.parametrize(
    ("command", "words", "field"),
    [
        (build, ["python:a.b:c", "-o", "out"], "source"),
        (verify, ["art", "--reference", "python:a.b:c", "--images", "x"], "reference"),
        (evaluate, ["python:a.b:c", "data"], "detector"),
    ],
)
def test_every_option_of_a_source(options_of, command, words, field):
    assert getattr(options_of(command, *words, *ALL), field) == SourceSpec(
        location="python:a.b:c",
        model="Padim",
        image_size=(480, 640),
        camera="gray16",
        steps=(
            Resize((256, 320), "bicubic", antialias=False),
            CenterCrop((224, 224)),
            SwapChannels(),
            Normalise((0.5, 0.25, 0.0), (1.0, 0.5, 0.2)),
        ),
        outputs="score=a,map=b",
        threshold=-0.5,
        pixel_threshold=7.0,
        trust_pickle=True,
    )
    assert getattr(options_of(command, *words), field) == SourceSpec("python:a.b:c")


def test_inspect_takes_them_too(monkeypatch):
    from vadexport import sources

    caught = []

    def stop(spec):
        caught.append(spec)
        raise Reached

    monkeypatch.setattr(sources, "open_source", stop)
    with pytest.raises(Reached):
        inspect.main(["d.onnx", "--resize", "256"], standalone_mode=False, obj=Console())
    assert caught == [SourceSpec("d.onnx", steps=(Resize(256),))]


@pytest.mark.parametrize(
    ("text", "size"), [("256", 256), ("256x320", (256, 320)), ("256x256", (256, 256))]
)
def test_one_number_to_resize_to_is_the_shorter_side(options_of, text, size):
    found = options_of(build, "d", "-o", "a", "--resize", text)
    assert found.source.steps == (Resize(size),)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--interpolation", "nearest"], "--interpolation means nothing without --resize"),
        (["--no-antialias"], "--no-antialias means nothing without --resize"),
        (["--mean", "0,0,0"], "--mean means nothing without --std"),
        (["--std", "1,1,1"], "--std means nothing without --mean"),
        (["--mean", "0,0,0", "--std", "0,1,1"], "std is above 0"),
        (["--mean", "0,0"], "'0,0' is no list such as 0.485,0.456,0.406"),
        (["--mean", "0,0,x"], "'0,0,x' is no list such as"),
        (["--mean", "0,0,nan"], "'0,0,nan' holds a number that is not finite"),
        (["--std", "1,1,inf"], "'1,1,inf' holds a number that is not finite"),
        (["--threshold", "nan"], "'nan' is no finite number"),
        (["--threshold", "1e39"], "'1e39' is no finite number"),
        (["--pixel-threshold", "x"], "'x' is no finite number"),
        (["--resize", "0"], "'0' is no size such as 256x320"),
        (["--crop", "99999"], "a size is 1 … 16384 pixels a side"),
        (["--camera", "bayer"], "'bayer' is not one of 'rgb', 'gray', 'gray16'"),
        (["--interpolation", "area"], "'area' is not one of"),
        (["--input-layout", "nchw"], "'nchw' is not one of 'nhwc', 'float-nchw'"),
    ],
)
def test_what_is_refused(words, line):
    assert line in refusal(build, "d", "-o", "a", *words)


@pytest.mark.parametrize(
    "words", [ALL[:2], ["--no-antialias"], ["--bgr"], ["--trust-pickle"], ["--threshold", "0"]]
)
@pytest.mark.parametrize("command", [evaluate, inspect])
def test_an_artifact_is_read_without_them(tmp_path, command, words):
    data = ["data"] if command is evaluate else []
    assert refusal(command, tmp_path, *data, *words) == (
        f"{tmp_path} is a folder, an artifact: it takes no {words[0]}"
    )


def test_an_artifact_to_evaluate(options_of, tmp_path):
    assert options_of(evaluate, tmp_path, "data").detector == tmp_path


# --- the file and the command line -----------------------------------------------------------


def test_a_build_from_a_file(options_of, file, tmp_path):
    found = options_of(build, "--config", file)
    assert found.source == SourceSpec(
        location=str(tmp_path / "stored.onnx"),
        camera="gray",
        steps=(Resize((64, 96)), SwapChannels()),
        threshold=1.5,
    )
    assert found.destination == tmp_path / "out"
    assert found.targets == (Target("onnxruntime", "fp32"), Target("openvino", "int8"))
    assert found.calibration == str(tmp_path / "train")
    assert found.batch is None
    assert found.layout == "float-nchw"
    assert found.threads == 3


def test_what_the_command_line_gives_goes_before_the_file(options_of, file):
    found = options_of(
        *(build, "mine.onnx", "-o", "mine", "--config", file),
        # The last two are the defaults: given, they count all the same.
        *("--target", "openvino:fp32", "--calibration", "here", "--threads", "1"),
        *("--threshold", "0", "--resize", "32", "--batch", "1", "--input-layout", "nhwc"),
    )
    assert found.source == SourceSpec(
        location="mine.onnx",
        camera="gray",
        steps=(Resize(32), SwapChannels()),
        threshold=0.0,
    )
    assert str(found.destination) == "mine"
    assert found.targets == (Target("openvino", "fp32"),)
    assert found.calibration == "here"
    assert found.batch == 1
    assert found.layout == "nhwc"
    assert found.threads == 1


def test_without_a_file_defaults_hold(options_of, tmp_path):
    (tmp_path / "vadexport.toml").write_text("")
    for words in ([], ["--config", tmp_path / "vadexport.toml"]):
        found = options_of(build, "d", "-o", "a", *words)
        assert found.targets == (Target("openvino", "fp32"),)
        assert (found.batch, found.layout, found.threads) == (1, "nhwc", None)
        assert found.calibration is None


def test_a_dynamic_batch_goes_before_a_fixed_one(options_of, tmp_path):
    (tmp_path / "v.toml").write_text("build.batch = 8")
    words = ["d", "-o", "a", "--config", tmp_path / "v.toml"]
    assert options_of(build, *words).batch == 8
    assert options_of(build, *words, "--batch", "dynamic").batch is None


def test_a_verification_from_a_file(options_of, file, tmp_path):
    found = options_of(verify, "--config", file)
    assert found.artifact == tmp_path / "out"
    assert found.reference.location == str(tmp_path / "stored.onnx")
    assert found.reference.threshold == 1.5
    assert found.images == str(tmp_path / "test")
    assert found.limits == {"max_drift": 0.25, "min_speedup": 2}


def test_a_verification_whose_command_line_goes_before_the_file(options_of, file):
    found = options_of(
        *(verify, "mine", "--reference", "python:a:b", "--images", "here", "--config", file),
        *("--max-drift", "0", "--max-flips", "0.5", "--threshold", "9"),
        *("--max-map-drift", "int8=0.25"),
    )
    assert str(found.artifact) == "mine"
    assert found.reference.location == "python:a:b"
    assert found.reference.threshold == 9
    assert found.images == "here"
    assert found.limits == {"max_drift": 0, "max_flips": 0.5, "min_speedup": 2}
    assert found.limits_of_precision == {"int8": {"max_map_drift": 0.25}}


def test_a_limit_of_one_precision_goes_before_one_of_all(options_of, file):
    with file.open("a") as stream:
        stream.write(
            "[limits.int8]\nmax_drift = 0.5\nmax_flips = 0.01\n[limits.fp32]\nmax_drift = 2\n"
        )
    words = ("--max-flips", "0.1", "--max-drift", "int8=0.75", "--max-drift", "auto=0.3")
    found = options_of(verify, "--config", file, *words)
    assert found.limits == {"max_drift": 0.25, "min_speedup": 2, "max_flips": 0.1}
    assert found.limits_of("int8").max_drift == 0.75
    assert found.limits_of("int8").max_flips == 0.1  # the command line goes before the file
    assert found.limits_of("auto").max_drift == 0.3
    assert found.limits_of("fp32").max_drift == 2
    assert found.limits_of("fp16").max_drift == 0.25
    assert found.limits_of("int8").min_speedup == 2


def test_limits_of_all_that_are_looser_than_a_default_are_known(options_of):
    words = ("a", "--reference", "r", "--images", "i", "--min-spearman", "0.99")
    found = options_of(verify, *words, "--max-drift", "0.5", "--max-flips", "fp32=1")
    assert found.loosened("fp32") == ["max_drift", "min_spearman"]
    assert found.loosened("fp16") == ["max_drift"]
    assert found.loosened("int8") == []
    found = options_of(verify, *words, "--max-drift", "0.5", "--max-drift", "fp16=0.5")
    assert found.loosened("fp16") == []


@pytest.mark.parametrize(
    ("command", "words", "line"),
    [
        (build, [], "missing SOURCE: give it, or location of [source] in a file with --config"),
        (build, ["d"], "missing -o: give it, or output of [build] in a file with --config"),
        (verify, [], "missing ARTIFACT: give it, or output of [build] in a file with --config"),
        (verify, ["a"], "missing --images: give it, or images of [verify] in a file with --config"),
        (
            *(verify, ["a", "--images", "b"]),
            "missing --reference: give it, or location of [source] in a file with --config",
        ),
    ],
)
def test_what_neither_says(tmp_path, command, words, line):
    (tmp_path / "empty.toml").write_text("")
    assert refusal(command, *words) == line
    assert refusal(command, *words, "--config", tmp_path / "empty.toml") == line


def test_a_file_that_is_wrong(run, tmp_path):
    path = tmp_path / "vadexport.toml"
    path.write_text("[build]\noutptu = 'a'")
    done = run("build", "--config", path)
    assert done.returncode == 2
    assert done.stderr == (
        f"vadexport: error: {path}: unknown key 'outptu' in [build]; did you mean output?\n"
    )
    path.write_text("source.location = 'd'\nsource.trust_pickle = true")
    done = run("verify", "--config", path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "trust_pickle is not taken from a file" in done.stderr
