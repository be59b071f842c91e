from dataclasses import replace

import numpy as np
import pytest
import torch

from vadexport.artifact import open_artifact
from vadexport.contract import PREPROCESSED
from vadexport.detectors.steps import EagerPreprocessing
from vadexport.errors import BackendError
from vadexport.images import ImageFile
from vadexport.reporting.wording import parts as words
from vadexport.targets import Target
from vadexport.verification import parts
from vadexport.verification.parts import Parts, decoding_samples_ms, preprocessing_opener

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("target", ["openvino-fp32", "openvino-int8", "onnxruntime-int8"])
def test_preprocessing_alone_gives_what_the_network_takes(artifacts, plain, crops, target):
    artifact = open_artifact(artifacts / target)
    runner = preprocessing_opener(artifact.folder, artifact.manifest.target, 1)()
    outputs = runner.infer(crops[0][None])
    eager = EagerPreprocessing(plain.steps)(torch.from_numpy(crops[0][None]))
    assert list(outputs) == [PREPROCESSED]
    np.testing.assert_allclose(outputs[PREPROCESSED], eager.numpy(), atol=1e-5)


@pytest.mark.parametrize("target", ["openvino-fp32", "onnxruntime-fp32"])
def test_a_graph_without_a_seam(artifacts, target, monkeypatch):
    monkeypatch.setattr(parts, "PREPROCESSED", "elsewhere")
    artifact = open_artifact(artifacts / target)
    with pytest.raises(BackendError, match="has no tensor elsewhere"):
        preprocessing_opener(artifact.folder, artifact.manifest.target, 1)()


def test_an_engine_is_one_piece(tmp_path):
    assert preprocessing_opener(tmp_path, Target.parse("tensorrt-rtx:fp16@sm86"), 1) is None


def test_the_parts_add_up():
    found = Parts(decoding_ms=2.0, preprocessing_ms=1.5, call_ms=9.0)
    assert found.inference_ms == 7.5
    assert found.together_ms == found.decoding_ms + found.preprocessing_ms + found.inference_ms
    alone = Parts(decoding_ms=2.0, preprocessing_ms=None, call_ms=9.0)
    assert (alone.inference_ms, alone.together_ms) == (None, 11.0)


@pytest.mark.parametrize("preprocessing", [9.0, 9.5])
def test_no_time_is_negative(preprocessing):
    found = Parts(decoding_ms=2.0, preprocessing_ms=preprocessing, call_ms=9.0)
    assert (found.inference_ms, found.together_ms) == (None, 11.0)
    rows = dict(words(found))
    assert rows["preprocessing"].startswith("9")
    assert rows["inference"] == "– (preprocessing alone took as long as the whole call)"


@pytest.mark.parametrize("batch", [1, None, 4])
def test_decoding_takes_a_file_as_often_as_a_call_has_images(plain, tmp_path, monkeypatch, batch):
    now = [0.0]
    monkeypatch.setattr(parts.time, "perf_counter", lambda: now[0])

    def decode(path, _channels):
        now[0] += float(path.name)

    monkeypatch.setattr(parts, "decode", decode)
    files = [ImageFile(tmp_path / seconds, seconds, None) for seconds in ("1", "5", "2")]
    image_input = replace(plain.image_input, batch=batch)
    expected = [1000 * seconds * (batch or 1) for seconds in (1, 5, 2)]
    assert decoding_samples_ms(files, image_input) == pytest.approx(expected)
