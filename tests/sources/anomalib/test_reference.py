"""The reference against anomalib's own engine, from image files on."""

import warnings

import numpy as np
import pytest

from vadexport.images.colouring import save_png
from vadexport.sources import SourceSpec, open_source

#: Of scores from 0 to 1: the engine loads weights with other strides, so convolutions round
#: otherwise, and distances of like patches lose digits to cancellation.
ROUNDING = 2e-5


@pytest.fixture(scope="module")
def engine_predictions(zoo):
    """What `Engine.predict` says of the images of a folder, by the model's own checkpoint."""

    def get(name, path, folder):
        with zoo.offline(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from anomalib.engine import Engine

            module = zoo.reload(path, name)
            engine = Engine(
                accelerator="cpu", devices=1, logger=False, default_root_dir=folder.parent / "runs"
            )
            return engine.predict(model=module, data_path=folder, ckpt_path=path)

    return get


@pytest.mark.slow
@pytest.mark.parametrize("size", [(300, 200), (256, 256), (512, 640)])
@pytest.mark.parametrize("name", ["Patchcore", "Padim"])
def test_is_what_the_engine_predicts(
    name, size, checkpoint_of, engine_predictions, textured, tmp_path
):
    folder = tmp_path / "images"
    folder.mkdir()
    images = textured(3, *size)
    for number, image in enumerate(images):
        save_png(image, folder / f"{number}.png")
    path = checkpoint_of(name)
    batches = engine_predictions(name, path, folder)
    by_name = {
        batch.image_path[place].rsplit("/", 1)[-1]: (batch, place)
        for batch in batches
        for place in range(len(batch.image_path))
    }
    reference = open_source(SourceSpec(str(path), image_size=size)).open_reference(1)
    for number, image in enumerate(images):
        batch, place = by_name[f"{number}.png"]
        found = reference.infer(image[None])
        assert found["pred_score"][0] == pytest.approx(float(batch.pred_score[place]), abs=ROUNDING)
        assert found["pred_label"][0] == bool(batch.pred_label[place])
        expected = batch.anomaly_map[place].numpy().squeeze()
        np.testing.assert_allclose(found["anomaly_map"][0, 0], expected, rtol=0, atol=ROUNDING)
        clear = np.abs(expected - 0.5) > ROUNDING
        mask = batch.pred_mask[place].numpy().squeeze()
        np.testing.assert_array_equal(found["pred_mask"][0, 0][clear], mask[clear])
