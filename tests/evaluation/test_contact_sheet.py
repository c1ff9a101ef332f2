"""The contact sheet shows ground truth and detections, and is written whole."""

import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from dinox.evaluation.contact_sheet import draw_contact_sheet

CLASSES = ["disk", "ring"]
RED, BLUE = (255, 0, 0), (0, 0, 255)
GREY = (128, 128, 128)


class _Metadata:
    """The two members of detectron2's metadata that are read."""

    def __init__(self, thing_classes=CLASSES, thing_colors=(RED, BLUE)):
        self.members = {"thing_classes": thing_classes, "thing_colors": thing_colors}

    def get(self, name, default):
        return self.members.get(name, default)


def _dataset_dict(folder, *, annotations=(), height=80, width=100, name="image.png"):
    path = folder / name
    Image.new("RGB", (width, height), GREY).save(path)
    return {"file_name": str(path), "height": height, "width": width, "annotations": list(annotations)}


def _annotation(box, category_id, iscrowd=0):
    return {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": category_id, "iscrowd": iscrowd}


def _instances(boxes=(), scores=(), classes=(), size=(80, 100)):
    instances = Instances(size)
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.tensor(scores, dtype=torch.float32)
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    return instances


def _count(path, colour, half):
    """Pixels of exactly this colour in the left (0) or right (1) half of the sheet, below its header."""
    with Image.open(path) as sheet:
        width = sheet.width // 2
        part = sheet.convert("RGB").crop((half * width, 60, (half + 1) * width, sheet.height))
    return sum(count for count, pixel in part.getcolors(part.width * part.height) if pixel == colour)


def _draw(tmp_path, dataset_dicts, predictions, **options):
    path = tmp_path / "out" / "sheet.png"
    draw_contact_sheet(dataset_dicts, predictions, options.pop("metadata", _Metadata()), path, **options)
    return path


def test_ground_truth_is_left_and_detections_are_right_in_the_colours_of_their_classes(tmp_path):
    image = _dataset_dict(tmp_path, annotations=[_annotation([10, 20, 40, 30], 0)])
    path = _draw(tmp_path, [image], [_instances([[50, 20, 90, 60]], [0.9], [1])])
    assert _count(path, RED, 0) > 200
    assert _count(path, BLUE, 0) == 0
    assert _count(path, RED, 1) == 0
    assert _count(path, BLUE, 1) > 200


def test_detections_below_the_threshold_are_left_out(tmp_path):
    image = _dataset_dict(tmp_path)
    predictions = _instances([[50, 20, 90, 60], [5, 5, 40, 40]], [0.31, 0.29], [1, 0])
    path = _draw(tmp_path, [image], [{"instances": predictions}], score_threshold=0.3)
    assert _count(path, BLUE, 1) > 0
    assert _count(path, RED, 1) == 0


def test_crowds_are_drawn_unlike_objects(tmp_path):
    sheets = []
    for iscrowd in (0, 1):
        image = _dataset_dict(tmp_path, annotations=[_annotation([10, 20, 80, 50], 0, iscrowd)])
        sheets.append(_draw(tmp_path, [image], [_instances()]).read_bytes())
    assert sheets[0] != sheets[1]


def test_images_of_all_shapes_and_boxes_beyond_their_borders_fit(tmp_path):
    sizes = [(80, 100), (1, 1), (20, 600), (900, 30), (80, 100)]
    images = [_dataset_dict(tmp_path, height=h, width=w, name=f"{h}_{w}.png") for h, w in sizes]
    predictions = [_instances([[-50, -50, 2000, 2000], [5, 5, 5, 5]], [0.9, 0.9], [0, 1], size) for size in sizes]
    path = _draw(tmp_path, images, predictions, pairs_per_row=2, cell_size=200)
    with Image.open(path) as sheet:
        assert sheet.width < 2 * (2 * 200 + 100)
        assert 3 * 180 < sheet.height < 3 * 300


def test_at_most_max_images_are_drawn(tmp_path):
    image, predictions = _dataset_dict(tmp_path), _instances()
    heights = []
    for number in (4, 9):
        with Image.open(_draw(tmp_path, [image] * number, [predictions] * number, max_images=4)) as sheet:
            heights.append(sheet.height)
    assert heights[0] == heights[1]


def test_classes_without_names_or_colours_are_drawn(tmp_path):
    image = _dataset_dict(tmp_path)
    predictions = _instances([[50, 20, 90, 60], [5, 5, 40, 40]], [0.9, 0.8], [1, 30])
    assert _draw(tmp_path, [image], [predictions], metadata=_Metadata([], None)).exists()
    assert _draw(tmp_path, [image], [predictions], metadata=_Metadata([str(i) for i in range(80)], None)).exists()


@pytest.mark.parametrize("number", [0, 2])
def test_another_number_of_predictions_is_an_error(tmp_path, number):
    with pytest.raises(ValueError, match=f"got {number} predictions for 1 images"):
        _draw(tmp_path, [_dataset_dict(tmp_path)], [_instances()] * number)


def test_predictions_for_another_image_size_are_an_error_that_names_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"image\.png.*\(80, 100\).*\(40, 50\)"):
        _draw(tmp_path, [_dataset_dict(tmp_path)], [_instances(size=(40, 50))])


def test_an_interrupted_writing_keeps_the_old_sheet(tmp_path, monkeypatch):
    image = _dataset_dict(tmp_path)
    path = _draw(tmp_path, [image], [_instances()])
    before = path.read_bytes()

    def fail(self, file, **options):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        _draw(tmp_path, [image], [_instances()], title="another")
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
