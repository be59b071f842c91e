import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.passes.half_graphs import graph
from vadexport.backends.registry import get_backend
from vadexport.backends.tensorrt import rtx
from vadexport.backends.tensorrt.settings import TensorRTSettings
from vadexport.errors import BackendError
from vadexport.targets import Target

trt = pytest.importorskip("tensorrt_rtx", reason="engines are built by tensorrt_rtx")

CAMERA = """
    turned = Transpose<perm = [0,3,1,2]>(image)
    floats = Cast<to = 1>(turned)
    c = Conv(floats, w)
    features = Relu(c)
    anomaly_map = ReduceMean<keepdims = 1>(features, channels)
    raw_score = ReduceMax<keepdims = 0>(anomaly_map, others)
"""


def camera(batch="1", dtype="uint8"):
    """Camera bytes in, a map and a score out."""
    return graph(
        f"{dtype}[{batch},8,8,3] image",
        CAMERA,
        f"float[{batch},1,8,8] anomaly_map, float[{batch}] raw_score",
        w=np.random.default_rng(0).normal(size=(4, 3, 1, 1)),
        channels=[1],
        others=[1, 2, 3],
    )


def small(nodes, output="float[1,2,4,4] y", **weights):
    return graph("float[1,2,4,4] image", nodes, output, **weights)


@pytest.fixture
def compiled(tmp_path):
    """Compile a graph, or bytes for one; gives the facts and the artifact's folder."""

    def compile_graph(model, device="sm86", settings=None, folder="artifact"):
        path, destination = tmp_path / "graph.onnx", tmp_path / folder
        destination.mkdir()
        if isinstance(model, bytes):
            path.write_bytes(model)
        else:
            onnx.save(model, path)
        target = Target("tensorrt-rtx", "fp32", device)
        return rtx.compile_graph(path, destination, target, settings or TensorRTSettings()), (
            destination
        )

    return compile_graph


@pytest.fixture
def refused(compiled, tmp_path):
    """The one line that refuses a graph; nothing is left behind."""

    def refuse(model):
        with pytest.raises(BackendError) as caught:
            compiled(model)
        assert list((tmp_path / "artifact").iterdir()) == []
        text = str(caught.value)
        assert len(text.splitlines()) == 1
        return text

    return refuse


class TestFiles:
    def test_engine_graph_and_settings_and_no_others(self, compiled):
        facts, folder = compiled(camera(), settings=TensorRTSettings(level=2, workspace_mb=64))
        assert sorted(path.name for path in folder.iterdir()) == [
            *("model.engine", "model.onnx", "settings.json")
        ]
        engine = (folder / "model.engine").read_bytes()
        assert engine[:4] == b"vtrt"
        assert len(engine) == facts["engine_bytes"] > 10_000
        settings = json.loads((folder / "settings.json").read_text())
        assert settings == TensorRTSettings(level=2, workspace_mb=64).to_json() | {
            "batches": [1, 8, 32]
        }

    def test_the_graph_is_as_the_library_reads_it(self, compiled):
        _, folder = compiled(camera(dtype="uint16"))
        kept = onnx.load(folder / "model.onnx")
        onnx.checker.check_model(kept, full_check=True)
        assert kept.graph.node[0].op_type == "Cast"
        assert kept.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.INT32

    def test_hold_no_path(self, compiled, tmp_path):
        _, folder = compiled(camera())
        for path in folder.iterdir():
            data = path.read_bytes()
            for word in (str(tmp_path).encode(), b"site-packages", b"/work"):
                assert word not in data, path.name


class TestFacts:
    def test_are_those_of_the_engine(self, compiled):
        facts, _ = compiled(camera())
        assert facts["library"] == f"TensorRT-RTX {trt.__version__}"
        assert facts["for"] == "sm86"
        assert facts["inputs"] == [{"name": "image", "dtype": "uint8", "shape": [1, 8, 8, 3]}]
        assert facts["outputs"] == [
            {"name": "anomaly_map", "dtype": "float32", "shape": [1, 1, 8, 8]},
            {"name": "raw_score", "dtype": "float32", "shape": [1]},
        ]
        assert facts["layers"]["convolution float32"] == 1
        assert facts["layers"]["reduce float32"] == 2
        assert list(facts["layers"]) == sorted(facts["layers"])
        assert facts["build_seconds"] >= 0
        assert json.loads(json.dumps(facts)) == facts

    def test_a_float16_layer_is_one(self, compiled):
        facts, _ = compiled(small("h = Cast<to = 10>(image)\n r = Relu(h)\n y = Cast<to = 1>(r)"))
        assert facts["layers"]["activation float16"] == 1
        assert "activation float32" not in facts["layers"]

    def test_an_int8_layer_has_its_quantisers(self, compiled):
        model = small(
            "q = QuantizeLinear(image, s, z)\n d = DequantizeLinear(q, s, z)\n y = Conv(d, w)",
            s=np.array(0.1),
            z=np.array(0, np.int8),
            w=np.ones((2, 2, 1, 1)),
        )
        facts, _ = compiled(model)
        assert facts["layers"]["quantize int8"] == facts["layers"]["dequantize float32"] == 1

    def test_a_dynamic_batch_has_a_profile(self, compiled):
        facts, folder = compiled(camera(batch="N"), settings=TensorRTSettings((2, 4, 16)))
        assert facts["inputs"][0]["shape"] == [-1, 8, 8, 3]
        assert [each["shape"][0] for each in facts["outputs"]] == [-1, -1]
        assert json.loads((folder / "settings.json").read_text())["batches"] == [2, 4, 16]
        engine = (folder / "model.engine").read_bytes()
        assert compiled(camera(batch="N"), folder="b")[1].joinpath("model.engine").read_bytes() != (
            engine  # the profile is in it
        )


class TestDevices:
    def test_each_is_another_engine(self, compiled):
        devices = ["sm75", "sm80", "sm86", "sm89", "sm120", "sm121", "sm86+sm89", ""]
        engines = {}
        for device in devices:
            facts, folder = compiled(camera(), device, folder=f"for-{device}")
            engines[device] = (folder / "model.engine").read_bytes()
            assert facts["for"] == (device or "GPUs from Ampere on")
        assert len(set(engines.values())) == len(devices)

    def test_the_same_graph_gives_the_same_bytes_in_another_process(self, compiled, tmp_path):
        code = """
import sys
from pathlib import Path
from vadexport.backends.tensorrt import rtx
from vadexport.targets import Target
folder = Path(sys.argv[2])
folder.mkdir()
rtx.compile_graph(Path(sys.argv[1]), folder, Target.parse("tensorrt-rtx:fp32@sm86+sm89"))
"""
        _, folder = compiled(camera(), "sm86+sm89")
        words = [sys.executable, "-c", code, tmp_path / "graph.onnx", tmp_path / "again"]
        subprocess.run(words, check=True, capture_output=True, cwd=Path(__file__).parents[3])
        for name in ("model.engine", "model.onnx", "settings.json"):
            first, second = (each / name for each in (folder, tmp_path / "again"))
            digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second)}
            assert len(digests) == 1, name


class TestRefused:
    @pytest.mark.parametrize(
        ("nodes", "output", "named"),
        [
            ("r = Relu(image)\n y = Det(r)", "float[1,2] y", "Det (node y)"),
            (
                "b = Bernoulli(image)\n d = Det(b)\n e = Det(b)\n y = Add(d, e)",
                "float[1,2] y",
                "Bernoulli (node b), Det (node d)",
            ),
        ],
    )
    def test_operators_that_the_library_does_not_know(self, refused, nodes, output, named):
        assert refused(small(nodes, output)) == (
            f"TensorRT-RTX has no operator {named}; leave it out of the model, or use another "
            "target"
        )

    def test_what_the_parser_cannot_read_names_the_node(self, refused):
        model = small(
            "r = Relu(image)\n y = MaxPool<kernel_shape = [2,2], dilations = [2,2]>(r)",
            "float[1,2,2,2] y",
        )
        text = refused(model)
        assert text.startswith("TensorRT-RTX cannot read the graph: node y (MaxPool): ")
        assert "dilations" in text

    def test_limits_go_before_the_parser(self, refused):
        model = graph(
            "float[1,1,70,70] image",
            "f = Reshape(image, flat)\n y, i = TopK(f, k)",
            "float[3841] y",
            flat=[-1],
            k=[3841],
        )
        assert refused(model).startswith("TensorRT: node y (TopK) takes the 3841 largest values")

    @pytest.mark.parametrize(
        "data",
        [b"", b"no graph", b"\x08\x0a" * 50, None],
        ids=["empty", "text", "bytes", "truncated"],
    )
    def test_a_file_that_is_no_graph(self, refused, data):
        whole = camera().SerializeToString()
        text = refused(whole[: len(whole) // 2] if data is None else data)
        assert text.startswith("TensorRT")
        assert "cannot read" in text


def test_a_detector_as_it_is_traced(compiled, graph_of):
    model = graph_of("resizing", None)[1].model
    facts, _ = compiled(model, "sm86+sm89")
    names = {"pred_score", "raw_score", "pred_label", "anomaly_map", "pred_mask"}
    assert {each["name"] for each in facts["outputs"]} == names
    assert facts["inputs"] == [{"name": "image", "dtype": "uint8", "shape": [-1, 88, 112, 3]}]
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert facts["layers"]["convolution float32"] == len(convolutions)


def test_the_registry_leads_here():
    backend = get_backend("tensorrt-rtx")
    assert backend.AHEAD_OF_TIME
    assert backend.version() == trt.__version__
    assert not get_backend("tensorrt").AHEAD_OF_TIME
