from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from vadexport.artifact import read_manifest, write_manifest
from vadexport.errors import BackendError, InputError
from vadexport.runtime import load


@pytest.fixture
def detector(artifacts):
    return load(artifacts / "onnxruntime-fp32", threads=1)


@pytest.mark.parametrize("count", [0, 2])
def test_an_array_of_several_images_is_refused(detector, crops, count):
    several = np.stack(crops[:2])[:count]
    with pytest.raises(InputError, match="one image at a time"):
        detector.predict(several)
    with pytest.raises(InputError, match="one image at a time"):
        detector.predict_batch([crops[0], several])


def test_a_list_gives_a_prediction_for_each(detector, crops):
    found = detector.predict_batch(crops[:3])
    assert [one.raw_score for one in found] == [detector.predict(c).raw_score for c in crops[:3]]


@pytest.mark.parametrize("target", ["onnxruntime-fp32", "openvino-fp32"])
def test_a_model_that_the_backend_cannot_load(artifacts, tmp_path, target):
    name = "model.onnx" if target.startswith("onnx") else "model.xml"
    (tmp_path / name).write_bytes(b"no model")
    write_manifest(tmp_path, read_manifest(artifacts / target))
    with pytest.raises(BackendError, match=target.replace("-", ":") + " failed: "):
        load(tmp_path)


@pytest.mark.parametrize("target", ["onnxruntime-fp32", "openvino-fp32"])
def test_threads_may_share_a_detector(artifacts, crops, target):
    detector = load(artifacts / target, threads=1)
    alone = [detector.predict(crop).raw_score for crop in crops]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda crop: detector.predict(crop).raw_score, crops * 4))
    assert found == alone * 4
