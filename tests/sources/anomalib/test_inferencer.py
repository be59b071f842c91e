"""Artifacts in anomalib's own OpenVINOInferencer, in place of its export."""

import warnings

import numpy as np
import pytest

from vadexport.building import BuildOptions, build
from vadexport.images.colouring import save_png
from vadexport.listening import Listener
from vadexport.sources import SourceSpec, open_source
from vadexport.targets import Target


@pytest.mark.parametrize("name", ["Padim", "Patchcore"])
def test_anomalibs_own_inferencer_gives_the_engines_scores(
    name, checkpoint_of, textured, tmp_path, monkeypatch
):
    images = tmp_path / "images" / "good"
    images.mkdir(parents=True)
    for number, image in enumerate(textured(8, 300, 260)):
        save_png(image, images / f"{number}.png")
    spec = SourceSpec(str(checkpoint_of(name)), image_size=(300, 260))
    options = BuildOptions(
        *(spec, tmp_path / "artifact", (Target("openvino", "fp32"),), str(images)),
        threads=1,
        layout="float-nchw",
    )
    (built,) = build(options, Listener()).targets
    assert all(rung.held for rung in built.rungs)
    monkeypatch.chdir(tmp_path)  # it makes a cache folder where it is
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from anomalib.deploy import OpenVINOInferencer

        inferencer = OpenVINOInferencer(
            built.folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        found = [inferencer.predict(images / f"{number}.png") for number in range(3)]
    reference = open_source(spec).open_reference(1)
    for number, image in enumerate(textured(8, 300, 260)[:3]):
        expected = reference.infer(image[None])
        assert found[number].pred_score == pytest.approx(expected["pred_score"], abs=1e-5)
        assert bool(found[number].pred_label) == bool(expected["pred_label"][0])
        maps = np.squeeze(found[number].anomaly_map), expected["anomaly_map"].squeeze()
        np.testing.assert_allclose(*maps, rtol=0, atol=1e-4)
