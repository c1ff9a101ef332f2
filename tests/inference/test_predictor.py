"""The three-line predictor: what goes in, and where its boxes come out."""

import numpy as np
import pytest
import torch
from detectron2.data.transforms import AugmentationList
from PIL import Image

from dinox import Predictor
from dinox.checkpoint import CheckpointError, describe
from dinox.checkpoint.writing import write_checkpoint as write_checkpoint_file
from dinox.config import ConfigError
from dinox.data import DetectionMapper, resize_augmentation
from dinox.inference.exported import EXPORTED
from tests.inference.conftest import ALLOWED
from tests.inference.marker import CLASS_NAMES, MarkerDetector, marker_config, picture, write_checkpoint

RED, BLUE = (10, 20, 30, 50), (50, 5, 70, 25)
WITH_RED = picture(red=RED)


def box_of(instances, index=0):
    return instances.pred_boxes.tensor[index].tolist()


def as_files(folder, array):
    path = folder / "image.png"
    Image.fromarray(array).save(path)
    return path


KINDS = {
    "path": as_files,
    "text": lambda folder, array: str(as_files(folder, array)),
    "PIL": lambda folder, array: Image.fromarray(array),
    "numpy": lambda folder, array: array,
    "tensor": lambda folder, array: torch.from_numpy(array).permute(2, 0, 1).contiguous(),
    "strided tensor": lambda folder, array: torch.from_numpy(array).permute(2, 0, 1),
    "numpy, not contiguous": lambda folder, array: np.repeat(array, 2, axis=1)[:, ::2],
    "numpy, read-only": lambda folder, array: np.frombuffer(array.tobytes(), np.uint8).reshape(array.shape),
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_boxes_come_out_in_the_frame_of_the_image(make_predictor, tmp_path, make):
    instances = make_predictor()(make(tmp_path, WITH_RED))
    assert instances.image_size == (60, 80)
    assert box_of(instances) == pytest.approx(RED, abs=1.5)  # the detector looks at 64 x 85 pixels
    assert instances.pred_classes.tolist() == [0]
    assert instances.scores.tolist() == pytest.approx([0.9])


def test_one_image_gives_one_list_gives_a_list_and_a_stream_gives_a_stream(make_predictor):
    predictor = make_predictor()
    assert predictor([]) == []
    assert [len(found) for found in predictor([WITH_RED, picture()])] == [1, 0]
    stream = predictor(image for image in (picture(), WITH_RED))
    assert iter(stream) is stream
    assert [len(found) for found in stream] == [0, 1]


def test_a_stream_takes_no_more_than_a_batch_ahead(make_predictor):
    taken = []

    def images():
        for index in range(10):
            taken.append(index)
            yield picture()

    stream = make_predictor(batch_size=3)(images())
    next(stream)
    assert taken == [0, 1, 2]


def test_images_go_through_the_model_in_batches(make_predictor):
    predictor = make_predictor(batch_size=3)
    sizes = [(60, 80), (80, 60), (30, 30), (60, 80)]
    found = predictor([picture(height=h, width=w) for h, w in sizes])
    assert predictor.detector.model.batch_sizes == [3, 1]
    assert [instances.image_size for instances in found] == sizes


def test_channel_order_is_of_arrays_and_tensors_and_not_of_files(make_predictor, tmp_path):
    predictor = make_predictor(channel_order="BGR")
    bgr = WITH_RED[:, :, ::-1]
    for image in (bgr, torch.from_numpy(bgr.copy()).permute(2, 0, 1), as_files(tmp_path, WITH_RED)):
        assert predictor(image).pred_classes.tolist() == [0]


def test_a_model_that_takes_bgr_gets_it(tmp_path):
    weights = write_checkpoint(tmp_path / "bgr.pth", marker_config(input_format="BGR"))
    predictor = Predictor(weights, allow_targets=ALLOWED)
    assert predictor(WITH_RED).pred_classes.tolist() == [0]


def test_a_file_is_turned_as_viewers_show_it(make_predictor, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to look at it
    Image.fromarray(WITH_RED).save(tmp_path / "turned.png", exif=exif)
    instances = make_predictor()(tmp_path / "turned.png")
    assert instances.image_size == (80, 60)
    assert box_of(instances) == pytest.approx((10, 10, 40, 30), abs=1.5)


def test_a_model_trained_on_images_as_they_are_stored_gets_them_so(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(WITH_RED).save(tmp_path / "turned.png", exif=exif)
    cfg = marker_config()
    cfg.dataloader.test.mapper.exif = "ignore"
    instances = Predictor(write_checkpoint(tmp_path / "bare.pth"), config=cfg)(tmp_path / "turned.png")
    assert instances.image_size == (60, 80)
    assert box_of(instances) == pytest.approx(RED, abs=1.5)


def test_the_weights_are_read_once(tmp_path, monkeypatch):
    reads, load = [], torch.load

    def counted(*args, mmap=False, **kwargs):
        reads.append(mmap)
        return load(*args, mmap=mmap, **kwargs)

    monkeypatch.setattr(torch, "load", counted)
    Predictor(write_checkpoint(tmp_path / "model.pth", marker_config()), allow_targets=ALLOWED)
    assert sorted(reads) == [False, True]  # mapped, nothing is read but the description


def test_scores_and_classes_select(make_predictor):
    image = picture(red=RED, blue=BLUE)
    assert make_predictor()(image).pred_classes.tolist() == [0, 1]
    assert make_predictor(score_threshold=0.6)(image).pred_classes.tolist() == [0]
    assert make_predictor(classes=["blue"])(image).pred_classes.tolist() == [1]
    with pytest.raises(ValueError, match=r"no class 'bleu'\. Did you mean 'blue'\? It has: red, blue"):
        make_predictor(classes=["bleu"])


def test_class_names_are_those_of_the_checkpoint(make_predictor):
    assert make_predictor().class_names == ("red", "blue")


def test_a_safetensors_file_knows_its_config_too(tmp_path):
    path = tmp_path / "model.safetensors"
    write_checkpoint_file(path, MarkerDetector().state_dict(), description=describe(marker_config(), CLASS_NAMES))
    predictor = Predictor(path, allow_targets=ALLOWED)
    assert predictor.class_names == ("red", "blue")
    assert len(predictor(WITH_RED)) == 1


class Exported(MarkerDetector):
    """The attributes of ``dinox.export.runtime.OnnxDetector``."""

    def __init__(self, path, *, device):
        super().__init__()
        self.eval()
        self.device, self.class_names = device, ("red", "blue")
        self.resize = AugmentationList(resize_augmentation(short_edge=32, max_size=128))


def test_an_exported_model_brings_its_settings(monkeypatch):
    monkeypatch.setitem(EXPORTED, ".onnx", Exported)
    predictor = Predictor("model.onnx", classes=["red"])
    assert predictor.class_names == ("red", "blue") and predictor.detector.model.device == "cpu"
    assert predictor.detector.prepare(WITH_RED, name="x")["image"].shape == (3, 32, 43)
    assert box_of(predictor(WITH_RED)) == pytest.approx(RED, abs=2.6)
    with pytest.raises(ValueError, match=r"model\.onnx is an exported model.*leave out the override 'a=1'"):
        Predictor("model.onnx", overrides=["a=1"])


def test_a_checkpoint_without_config_needs_one(tmp_path):
    weights = write_checkpoint(tmp_path / "bare.pth")
    with pytest.raises(ConfigError, match=r"bare\.pth does not say of which model it is.*config=.*--config-file"):
        Predictor(weights)
    predictor = Predictor(weights, config=marker_config())
    assert predictor.class_names == ("class 0", "class 1")
    assert len(predictor(WITH_RED)) == 1


def test_a_config_is_not_changed_by_overrides(tmp_path):
    weights, cfg = write_checkpoint(tmp_path / "bare.pth"), marker_config()
    key = "dataloader.test.mapper.augmentations.short_edge"
    predictor = Predictor(weights, config=cfg, overrides=[f"{key}=32"])
    assert predictor.detector.prepare(WITH_RED, name="x")["image"].shape == (3, 32, 43)
    assert cfg.dataloader.test.mapper.augmentations.short_edge == 64


def test_overrides_reach_the_config_of_the_checkpoint(make_predictor):
    predictor = make_predictor(overrides=["dataloader.test.mapper.augmentations.short_edge=32"])
    assert predictor.detector.prepare(WITH_RED, name="x")["image"].shape == (3, 32, 43)
    with pytest.raises(ConfigError, match=r"model\.pth.*short_egde.*Did you mean"):
        make_predictor(overrides=["dataloader.test.mapper.augmentations.short_egde=32"])


def test_a_config_without_the_size_of_images_is_an_error(tmp_path):
    weights, cfg = write_checkpoint(tmp_path / "bare.pth"), marker_config()
    del cfg.dataloader.test.mapper.augmentations
    with pytest.raises(ConfigError, match=r"config has no 'dataloader\.test\.mapper\.augmentations'"):
        Predictor(weights, config=cfg)


def test_weights_of_another_model_are_an_error(tmp_path):
    torch.save({"model": {"other": torch.ones(2)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth is not of this model"):
        Predictor(tmp_path / "other.pth", config=marker_config())


def test_names_of_another_number_of_classes_are_not_used(tmp_path, caplog):
    weights = write_checkpoint(tmp_path / "model.pth", marker_config(), class_names=["a", "b", "c"])
    assert Predictor(weights, allow_targets=ALLOWED).class_names == ("class 0", "class 1")
    assert "2 classes, but 3 names" in caplog.text


@pytest.mark.parametrize(
    "options, message",
    [
        ({"score_threshold": 30}, "score_threshold: expected a number from 0 to 1, got 30"),
        ({"batch_size": 0}, "batch_size: expected a whole number of at least 1, got 0"),
        ({"tile": 8}, "tile: expected a whole number of at least 32, got 8"),
        ({"tile_overlap": 1.0}, "tile_overlap: expected a number from 0 to 0.9, got 1.0"),
        ({"channel_order": "rgb"}, "channel_order: expected one of RGB, BGR, got 'rgb'"),
        ({"max_pixels": 0}, "max_pixels: expected a whole number of at least 1, got 0"),
    ],
)
def test_settings_are_checked_before_anything_is_loaded(options, message):
    with pytest.raises(ValueError, match=message):
        Predictor("nowhere.pth", **options)


def test_a_real_detector_gives_the_same_as_its_data_loader(tmp_path):
    """The path through Predictor is the one through DetectionMapper."""
    predictor = Predictor(write_checkpoint(tmp_path / "a.pth"), config=marker_config(short_edge=50))
    path = as_files(tmp_path, picture(red=RED, blue=BLUE, height=77, width=93))
    mapper = DetectionMapper(is_train=False, augmentations=resize_augmentation(short_edge=50, max_size=200))
    expected = mapper({"file_name": str(path), "height": 77, "width": 93})
    got = predictor.detector.prepare(predictor.read(path), name=str(path))
    assert torch.equal(got["image"], expected["image"])
    assert (got["height"], got["width"]) == (77, 93)
    [output] = MarkerDetector().eval()([expected])
    assert torch.equal(predictor(path).pred_boxes.tensor, output["instances"].pred_boxes.tensor)


def test_an_exported_program_has_to_be_trusted(tmp_path, monkeypatch):
    read = []

    class Program:
        resize, input_format, class_names = None, "RGB", ("red",)

        def __init__(self, path, *, device):
            read.append(path)

    monkeypatch.setitem(EXPORTED, ".pt2", Program)
    with pytest.raises(ValueError, match=r"model\.pt2: a torch\.export program can run code.*--trust-program"):
        Predictor("model.pt2")
    assert read == []
    assert Predictor("model.pt2", trust_program=True).class_names == ("red",)
