"""From anomalib's own training on real images to verified artifacts, by the commands."""

import json
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vadexport.images.colouring import save_png


def write_cells(folder, places):
    """Crops of the intact mono cells at these places of the list; four also with a scratch."""
    source = Path(find_spec("elpv_dataset").origin).parent / "data"
    rows = [line.split() for line in (source / "labels.csv").read_text().splitlines()]
    intact = [row[0] for row in rows if row[2] == "mono" and float(row[1]) == 0][places]
    (folder / "good").mkdir()
    (folder / "scratch").mkdir()
    for number, name in enumerate(intact):
        with Image.open(source / name) as image:
            crop = np.array(image)[100:196, 100:196, None]
        save_png(crop, folder / "good" / f"{number}.png")
        if number < 4:
            crop[40:44, 10:80] = 255
            save_png(crop, folder / "scratch" / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def validation(tmp_path_factory):
    """What anomalib takes its threshold from, which then is the score of one of these images."""
    return write_cells(tmp_path_factory.mktemp("validation"), slice(-12, None))


@pytest.fixture(scope="module")
def unseen(tmp_path_factory):
    """Other cells than those of `images` and `validation`: no score lies on the threshold."""
    return write_cells(tmp_path_factory.mktemp("unseen"), slice(-24, -12))


@pytest.fixture(scope="module")
def trained(images, validation, unseen, tmp_path_factory):
    """PatchCore that anomalib's engine trained on crops of solar cells, and what it predicts."""
    import torch

    from vadexport.torchvision_operators import declare_torchvision_operators

    declare_torchvision_operators()
    folder = tmp_path_factory.mktemp("anomalib")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's and anomalib's own
        from anomalib.data import Folder
        from anomalib.engine import Engine
        from anomalib.models import Patchcore

        torch.manual_seed(0)  # the backbone has no trained weights
        module = Patchcore(
            backbone="resnet18",
            layers=["layer2"],
            pre_trained=False,
            coreset_sampling_ratio=0.05,
        )
        data = Folder(
            name="cells",
            normal_dir=images / "good",
            normal_test_dir=validation / "good",
            abnormal_dir=validation / "scratch",
            test_split_mode="from_dir",
            val_split_mode="same_as_test",
            train_batch_size=4,
            num_workers=0,
        )
        engine = Engine(accelerator="cpu", devices=1, logger=False, default_root_dir=folder)
        engine.fit(model=module, datamodule=data)
        path = folder / "patchcore.ckpt"
        engine.trainer.save_checkpoint(path)
        batches = engine.predict(model=module, data_path=unseen, ckpt_path=path)
    scores = {
        f"{Path(name).parent.name}/{Path(name).name}": (float(score), bool(label))
        for batch in batches
        for name, score, label in zip(
            batch.image_path, batch.pred_score, batch.pred_label, strict=True
        )
    }
    return path, scores


@pytest.mark.slow
@pytest.mark.parametrize("camera", ["gray", "rgb"])
def test_a_trained_checkpoint_keeps_the_engines_scores(
    vadexport, trained, unseen, tmp_path, camera
):
    path, expected = trained
    words = ["--image-size", "96", "--camera", camera]
    built = vadexport(
        *("build", path, "-o", tmp_path / "both", *words, "--calibration", unseen / "good"),
        *("--target", "openvino:fp32", "--target", "onnxruntime:fp32"),
    )
    assert built.status == 0, built.err
    # The options of the build need not be said again.
    verified = vadexport(
        *("verify", tmp_path / "both", "--reference", path, "--images", unseen),
        *("--rounds", "0", "--report", tmp_path / "report", "--json"),
    )
    assert verified.status == 0, verified.out
    for each in json.loads(verified.out):
        assert each["parity"]["figures"]["flips"] == 0
        assert each["parity"]["figures"]["drift_max"] < 1e-3
    lines = tmp_path / "scores.jsonl"
    artifact = tmp_path / "both" / "openvino-fp32"
    assert vadexport("predict", artifact, unseen, "--jsonl", lines).status == 0
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(found) == len(expected) == 16
    for one in found:
        score, label = expected[one["image"]]
        assert one["pred_score"] == pytest.approx(score, abs=2e-5)
        assert one["pred_label"] == label
    assert len({round(score, 3) for score, _ in expected.values()}) > 3
    assert {label for _, label in expected.values()} == {True, False}


@pytest.mark.slow
def test_inspect_says_what_the_checkpoint_is(vadexport, trained):
    path, _ = trained
    told = vadexport("inspect", path).out
    for words in ("Patchcore", "resize to 256×256", "anomalib", "memory bank", "none has run"):
        assert words in told
    (found,) = json.loads(vadexport("inspect", path, "--json").out)
    assert found["kind"] == "anomalib"
    assert found["runs_code"] is None
    assert found["map_size"] == [256, 256]
