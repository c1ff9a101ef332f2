"""Datasets as a config names them: registered, loadable, of the same classes, and as many as the model's."""

import subprocess
import sys

import numpy as np
import pytest
from detectron2.structures import BoxMode
from omegaconf import OmegaConf

from dinox.data import DataError, check_data, check_num_classes, load_dataset_dicts
from dinox.data.checks import annotations_are_valid, check_annotations, check_dataset, check_same_classes, load_dataset

from .coco_files import small_coco, write_coco


def config(train, test=None, num_classes=2):
    loaders = {"train": {"dataset": {"names": train}}, "test": {"dataset": {"names": test or train}}}
    return OmegaConf.create({"model": {"num_classes": num_classes}, "dataloader": loaders})


def other_coco(*names: str) -> dict:
    """As `small_coco`, with other class names in the order of ids."""
    coco = small_coco()
    coco["categories"] = [{"id": i, "name": name} for i, name in zip((3, 7, 8), names)]
    return coco


def records(**fields) -> list[dict]:
    """One image in detectron2's format with one annotation, changed by `fields`."""
    annotation = {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, **fields}
    return [{"file_name": "dir/a.jpg", "image_id": 1, "height": 48, "width": 64, "annotations": [annotation]}]


def test_good_datasets_pass(tmp_path, register):
    train = register("good_train", write_coco(tmp_path, small_coco()))
    val = register("good_val", write_coco(tmp_path / "val", small_coco()))
    check_data(config(train, val))
    check_data(config([train], [val]))


def test_number_of_classes_is_compared_with_both_numbers_and_the_cure(tmp_path, register):
    name = register("two_classes", write_coco(tmp_path, small_coco()))
    message = r"model.num_classes is 80, but dataset 'two_classes' has 2 classes \(cat, dog\). Set model.num_classes=2"
    with pytest.raises(DataError, match=message):
        check_data(config(name, num_classes=80))


def test_builtin_classes_are_known_without_files():
    check_num_classes(80, ["coco_2017_train", "coco_2017_val"])
    with pytest.raises(DataError, match=r"is 91, but dataset 'coco_2017_train' has 80.*\(80 in all\).*num_classes=80"):
        check_num_classes(91, ["coco_2017_train"])


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(DataError, match=r"'coco_2017_trian' is not registered. Did you mean 'coco_2017_train'"):
        check_data(config("coco_2017_trian"))


@pytest.mark.parametrize("folder, text", [("/nowhere", "is '/nowhere'"), (None, "is not set, which means ./datasets")])
def test_missing_files_of_registered_datasets_name_the_dataset_folder(tmp_path, register, monkeypatch, folder, text):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    if folder:
        monkeypatch.setenv("DETECTRON2_DATASETS", folder)
    with pytest.raises(DataError, match=rf"gone.json not found.*DETECTRON2_DATASETS, which {text}"):
        check_dataset(register("gone", tmp_path / "gone.json"))


@pytest.mark.parametrize("use", [check_dataset, load_dataset, load_dataset_dicts])
def test_missing_file_is_named_with_dataset_and_folder(tmp_path, register, use):
    name = register("gone", tmp_path / "gone.json")
    with pytest.raises(
        DataError, match=rf"Dataset 'gone': Annotation file {tmp_path}/gone.json not found.*DETECTRON2_DATASETS"
    ):
        use(name)


def test_test_set_is_checked_before_training(tmp_path, register):
    train = register("there", write_coco(tmp_path, small_coco()))
    val = register("not_there", tmp_path / "gone.json")
    with pytest.raises(DataError, match=r"'not_there'.*not found"):
        check_data(config(train, val))


def test_training_set_is_not_needed_for_evaluation(tmp_path, register):
    train = register("not_there", tmp_path / "gone.json")
    val = register("there", write_coco(tmp_path, small_coco()))
    check_data(config(train, val), training=False)


def test_dataset_without_annotations_can_be_evaluated_but_not_trained_on(tmp_path, register):
    coco = small_coco()
    del coco["annotations"]
    name = register("bare", write_coco(tmp_path, coco))
    check_data(config(name), training=False)
    with pytest.raises(DataError, match=r"'bare'.*no key 'annotations'"):
        check_data(config(name))


@pytest.mark.parametrize("use", [check_dataset, load_dataset, load_dataset_dicts])
@pytest.mark.parametrize(
    "fields, message",
    [
        ({"bbox": [1, 2, 3]}, r"'bad': .*annotations.json: 'bbox': expected 4 numbers.*\[1, 2, 3\].*id 12"),
        ({"bbox": None}, r"'bad': .*annotations.json: 'bbox': expected 4 numbers.*null.*id 12"),
        ({"category_id": 5}, r"'bad': .*annotations.json: 'category_id'.*got 5.*id 12"),
    ],
)
def test_bad_annotation_is_named_however_the_dataset_is_used(tmp_path, register, use, fields, message):
    coco = small_coco()
    coco["annotations"][1].update(fields)
    name = register("bad", write_coco(tmp_path, coco))
    with pytest.raises(DataError, match=message):
        use(name)


def test_classes_of_the_registration_have_to_be_those_of_the_file(tmp_path, register):
    name = register("renamed", write_coco(tmp_path, small_coco()), thing_classes=["dog", "cat"])
    message = r"registered with the list of classes dog, cat, but .*annotations.json has the list cat, dog"
    with pytest.raises(DataError, match=message):
        check_data(config(name))


def test_a_tuple_of_classes_which_detectron2_would_trip_over_is_explained(tmp_path, register):
    name = register("tuple", write_coco(tmp_path, small_coco()), thing_classes=("cat", "dog"))
    with pytest.raises(DataError, match=r"with the tuple of classes cat, dog, but .* has the list cat, dog.*Leave"):
        check_data(config(name))


def test_datasets_have_to_have_the_same_classes(tmp_path, register):
    first = register("first", write_coco(tmp_path / "1", small_coco()))
    second = register("second", write_coco(tmp_path / "2", other_coco("cat", "horse")))
    with pytest.raises(
        DataError, match=r"'first' and 'second' have different classes.*only in 'first': dog; .*'second': horse"
    ):
        check_data(config([first, second]))
    with pytest.raises(DataError, match="'second': its classes cat, horse cannot be matched by name to cat, dog"):
        load_dataset_dicts([first, second])


def test_the_same_classes_in_another_order_are_different(tmp_path, register):
    first = register("first", write_coco(tmp_path / "1", small_coco()))
    second = register("second", write_coco(tmp_path / "2", other_coco("dog", "cat")))
    with pytest.raises(DataError, match="in another order: class 0 is 'cat' in the one and 'dog' in the other"):
        check_data(config(first, second))


def test_unknown_classes_are_not_compared(register):
    check_same_classes([register("nameless", records), "coco_2017_val"])


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"category_id": -1}, "'category_id': expected a class index from 0 to 1, got -1"),
        ({"category_id": 2}, "'category_id': expected a class index from 0 to 1, got 2"),
        ({"category_id": 1.7}, "'category_id'.*got 1.7"),
        ({"category_id": "cat"}, "'category_id'.*got 'cat'"),
        ({"bbox": [1, 2, 3]}, "'bbox'.*4 numbers"),
        ({"bbox_mode": None}, "'bbox_mode': expected BoxMode.XYWH_ABS or BoxMode.XYXY_ABS, got None"),
        ({"bbox": "1234"}, "'bbox'.*4 numbers"),
        ({"bbox": [1, 2, None, 4]}, "'bbox'.*4 numbers"),
        ({"bbox": ["1", "2", "3", "4"]}, "'bbox'.*4 numbers"),
    ],
)
def test_bad_dict_of_a_function_is_named_by_image_and_position(register, fields, message):
    name = register("made", lambda: records(**fields), thing_classes=["cat", "dog"])
    with pytest.raises(DataError, match=f"Dataset 'made': dir/a.jpg, annotation 0: {message}"):
        load_dataset(name)
    with pytest.raises(DataError, match=message):
        load_dataset_dicts(name)


def test_classes_without_names_are_checked_against_the_model_s_number(register):
    check_data(config(register("nameless", records), num_classes=2))
    with pytest.raises(DataError, match=r"'category_id': expected a class index from 0 to 0, got 1.*model.num_classes"):
        check_data(config(register("nameless_too", records), num_classes=1))


@pytest.mark.parametrize("split", ["train", "test"])
def test_image_format_is_compared_with_the_model_s(register, split):
    cfg = config(register("made", records))
    cfg.model.input_format = "RGB"
    cfg.dataloader[split].mapper = {"image_format": "RGB"}
    check_data(cfg)
    cfg.dataloader[split].mapper.image_format = "BGR"
    message = rf"dataloader.{split}.mapper.image_format is 'BGR', but model.input_format is 'RGB'"
    with pytest.raises(DataError, match=message):
        check_data(cfg)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"bbox": np.array([1, 2, 3, 4.0]), "category_id": np.int64(1)},
        {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYXY_ABS},
    ],
)
def test_good_dicts_pass(register, fields):
    check_annotations(records(**fields)[0], num_classes=2)
    assert len(load_dataset_dicts(register("made", lambda: records(**fields), thing_classes=["cat", "dog"]))) == 1


def test_fast_check_never_passes_what_the_slow_one_refuses():
    assert annotations_are_valid(records(), num_classes=2)
    assert not annotations_are_valid(records(), num_classes=1)
    assert not annotations_are_valid(records(category_id=True))


def test_function_that_fails_is_named_with_its_reason(register):
    def broken():
        raise KeyError("boxes")

    with pytest.raises(DataError, match="Dataset 'broken' cannot be loaded: KeyError: 'boxes'"):
        load_dataset(register("broken", broken))


@pytest.mark.parametrize("filter_empty, left", [(True, 1), (False, 2)])
def test_images_without_annotations_are_kept_when_asked(tmp_path, register, filter_empty, left):
    name = register("with_empty", write_coco(tmp_path, small_coco()))
    assert len(load_dataset_dicts(name, filter_empty=filter_empty)) == left


def test_nothing_left_after_the_filter_is_an_error(tmp_path, register):
    coco = small_coco()
    coco["annotations"] = []
    name = register("all_empty", write_coco(tmp_path, coco))
    with pytest.raises(DataError, match=r"all_empty: no image has an object.*filter_empty=False"):
        load_dataset_dicts(name)


def test_empty_list_of_names_is_an_error():
    with pytest.raises(DataError, match=r"dataset.names is empty"):
        load_dataset_dicts([])


WORKER = """
from detectron2.data import build_detection_train_loader
from dinox.data import DetectionMapper, resize_augmentation

if __name__ == "__main__":
    record = {"file_name": "missing.jpg", "height": 48, "width": 64, "annotations": []}
    mapper = DetectionMapper(is_train=True, augmentations=resize_augmentation(short_edge=32))
    loader = build_detection_train_loader([record], mapper=mapper, total_batch_size=1, num_workers=1)
    next(iter(loader))
"""


def test_last_line_of_a_worker_s_failure_is_the_message(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(WORKER)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith("dinox.data.errors.UnreadableImage: Image missing.jpg cannot be read: No such file or directory.")
    )
