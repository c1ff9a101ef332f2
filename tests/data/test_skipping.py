"""Training goes on without a few images, and says which."""

import csv
import logging
import os
import random
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils.file_io import PathManager

from dinox.data import DataError, DetectionMapper, build_train_loader, load_dataset_dicts, skipping
from dinox.data.skipping import ReadableImages
from tests.modeling.test_distributed import free_port

from .coco_files import write_image

HEIGHT, WIDTH = 6, 8


def write_records(folder, total: int, *, missing=()) -> list[dict]:
    records = []
    for number in range(total):
        file = folder / f"{number}.png"
        if number not in missing:
            write_image(file, height=HEIGHT, width=WIDTH)
        records.append({"file_name": str(file), "image_id": 100 + number, "height": HEIGHT, "width": WIDTH})
    return records


def make_loader(records, **settings):
    settings = {"total_batch_size": 2, "max_bad": 0.1, "sampler": InOrder(len(records)), **settings}
    return build_train_loader(dataset=records, mapper=DetectionMapper(is_train=True, augmentations=[]), **settings)


class InOrder(torch.utils.data.Sampler):
    """All images in their order, again and again."""

    def __init__(self, total: int):
        self.total = total

    def __iter__(self):
        while True:
            yield from range(self.total)


def take(loader, batches: int) -> list[list[int]]:
    """The image ids of the first batches."""
    iterator = iter(loader)
    return [[image["image_id"] for image in next(iterator)] for _ in range(batches)]


def rows(file) -> list[list[str]]:
    with open(file, newline="") as stream:
        return list(csv.reader(stream))


def test_good_images_come_as_they_are_and_each_is_opened_once(tmp_path, monkeypatch):
    records = write_records(tmp_path, 6)
    opened = []
    original = PathManager.open
    monkeypatch.setattr(PathManager, "open", lambda path, *args: opened.append(path) or original(path, *args))
    assert take(make_loader(records), 3) == [[100, 101], [102, 103], [104, 105]]
    assert opened == [record["file_name"] for record in records]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_replacement_is_the_same_with_any_number_of_workers(tmp_path, num_workers):
    records = write_records(tmp_path, 20, missing=(3, 8))
    expected = Counter(chain(*take(make_loader(records), 20)))  # two rounds
    assert expected.keys() == {record["image_id"] for record in records} - {103, 108}
    loader = make_loader(records, num_workers=num_workers)
    # Workers take turns, image by image; in what order the batches come is detectron2's business.
    assert Counter(chain(*take(loader, 20))) == expected
    assert loader.dataset.bad_images() == [(3, "missing"), (8, "missing")]


def test_the_replacement_does_not_depend_on_what_was_left_out_before(tmp_path):
    records = write_records(tmp_path, 20, missing=(3, 8))
    mapper = DetectionMapper(is_train=True, augmentations=[])
    images = ReadableImages(records, mapper, max_bad=0.1)
    random.seed(1)
    forwards = [images[index]["image_id"] for index in (3, 8)]
    images = ReadableImages(records, mapper, max_bad=0.1)
    random.seed(2)
    np.random.seed(2)
    assert [images[index]["image_id"] for index in (8, 8, 3)] == [forwards[1], forwards[1], forwards[0]]


def test_every_image_is_a_candidate(tmp_path):
    for only in range(7):
        folder = tmp_path / str(only)
        folder.mkdir()
        records = write_records(folder, 7, missing=set(range(7)) - {only})
        images = ReadableImages(records, DetectionMapper(is_train=True, augmentations=[]), max_bad=1.0)
        assert [images[index]["image_id"] for index in range(7)] == [100 + only] * 7


def test_skipped_images_are_listed_and_counted_per_cause(tmp_path, caplog):
    records = write_records(tmp_path, 30, missing=(4,))
    (tmp_path / "7.png").write_bytes(b"")
    (tmp_path / "9.png").write_text("<html>not found</html>")
    file = tmp_path / "out" / "skipped.csv"
    loader = make_loader(records, output_dir=str(file.parent), total_batch_size=10)
    with caplog.at_level(logging.INFO, logger="dinox"):
        batches = iter(loader)
        for _ in range(3):
            next(batches)
        assert not file.parent.exists()  # nobody has made the output folder yet
        file.parent.mkdir()
        next(batches)
        assert len(rows(file)) == 4
        loader.summarise()
    assert rows(file) == [
        ["path", "image id", "cause"],
        [str(tmp_path / "4.png"), "104", "missing"],
        [str(tmp_path / "7.png"), "107", "empty"],
        [str(tmp_path / "9.png"), "109", "no image"],
    ]
    messages = [record.message for record in caplog.records if "cannot be read" in record.message]
    assert len(messages) == 2  # one when they were met, one at the end
    assert "3 of 30 training images cannot be read (1 missing, 1 empty, 1 no image" in messages[-1]
    assert str(file) in messages[-1]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_more_bad_images_than_allowed_end_training_with_the_list(tmp_path, num_workers):
    records = write_records(tmp_path, 30, missing=range(10, 18))
    file = tmp_path / "out" / "skipped.csv"
    loader = make_loader(records, num_workers=num_workers, output_dir=str(file.parent))
    with pytest.raises(DataError) as caught:
        take(loader, 15)
    message = str(caught.value)
    assert "of 30 training images cannot be read" in message and "max_bad=0.1 allows 3" in message
    assert f"listed in {file}" in message and "dataloader.train.max_bad" in message
    listed = rows(file)[1:]
    assert 4 <= len(listed) <= 8
    assert {cause for *_, cause in listed} == {"missing"}


def test_without_a_list_the_message_names_the_files(tmp_path):
    with pytest.raises(DataError, match=rf"They are {tmp_path / '0.png'}, .*\.\.\."):
        take(make_loader(write_records(tmp_path, 30, missing=range(30)), max_bad=0.5), 1)


@pytest.mark.parametrize(
    "total, max_bad, allowed", [(1, 0.01, 0), (2, 0.01, 1), (8, 0.01, 1), (8, 0, 0), (150, 0.01, 2), (8, 1, 7)]
)
def test_small_datasets_may_lose_one_image(tmp_path, total, max_bad, allowed):
    records = [{"file_name": "none.png"}] * total
    assert ReadableImages(records, lambda record: record, max_bad=max_bad).most_bad == allowed


@pytest.mark.parametrize("max_bad", [-0.1, 5])
def test_max_bad_is_a_share(max_bad):
    with pytest.raises(ValueError, match="max_bad: expected a share of the images from 0 to 1"):
        ReadableImages([{}], dict, max_bad=max_bad)


@pytest.mark.parametrize(
    "spoil, message", [(lambda file: file.mkdir(), "Is a directory"), (lambda file: file.symlink_to(file), "Too many")]
)
def test_other_faults_are_not_skipped(tmp_path, spoil, message):
    records = write_records(tmp_path, 8, missing=(0,))
    spoil(tmp_path / "0.png")
    with pytest.raises(DataError, match=message):
        take(make_loader(records), 1)


def boxes_of(*boxes):
    return [{"bbox": list(box), "bbox_mode": 1, "category_id": 0} for box in boxes]


def test_images_that_lost_all_of_their_boxes_are_listed(tmp_path, register):
    records = write_records(tmp_path, 3)
    annotations = [boxes_of([1, 1, 3, 3]), boxes_of([1, 1, -3, 3]), boxes_of([1, 1, 3, 3], [1, 1, 0, 3])]
    for record, own in zip(records, annotations):
        record["annotations"] = own
    dicts = load_dataset_dicts(register("spoilt", lambda: records, thing_classes=["cat"]))
    assert [record["image_id"] for record in dicts] == [100, 102]
    take(make_loader(dicts, output_dir=str(tmp_path), total_batch_size=1), 2)
    assert rows(tmp_path / "skipped.csv")[1:] == [
        [str(tmp_path / "1.png"), "101", "boxes left out: 1 of negative width or height"],
        [str(tmp_path / "2.png"), "102", "boxes left out: 1 without area"],
    ]


@pytest.mark.parametrize("resumed", [True, False])
def test_a_resumed_run_keeps_the_rows_of_its_list(tmp_path, resumed):
    records = write_records(tmp_path, 30, missing=(4, 20))
    file = tmp_path / "skipped.csv"
    take(make_loader(records, output_dir=str(tmp_path)), skipping.REPORT_PERIOD + 1)
    before = rows(file)
    assert [row[1] for row in before[1:]] == ["104", "120"]
    if resumed:
        (tmp_path / "last_checkpoint").write_text("model_0000010.pth")
    loader = make_loader(records, output_dir=str(tmp_path))
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    assert rows(file) == ([before[0], before[2], before[1]] if resumed else before[:2])


# ---------------------------------------------------------------------------------------------------------------- ranks


def skip_on_two_ranks(rank: int, port: int, folder: str, max_bad: float) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2)
    skipping.REPORT_PERIOD = 1
    records = torch.load(os.path.join(folder, "records.pth"))
    own = torch.utils.data.SubsetRandomSampler(range(rank * 5, rank * 5 + 5), generator=torch.Generator())
    loader = make_loader(records, sampler=own, total_batch_size=4, max_bad=max_bad, output_dir=folder)
    error = ""
    try:
        for _ in loader:
            pass
        loader.summarise()
    except DataError as caught:
        error = str(caught)
    bad = loader.dataset.bad_images()
    torch.save({"bad": bad, "error": error}, os.path.join(folder, f"{rank}.pth"))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.timeout(90)
@pytest.mark.parametrize("max_bad", [0.2, 0.1])
def test_ranks_share_what_they_left_out(tmp_path, max_bad):
    torch.save(write_records(tmp_path, 10, missing=(2, 7)), tmp_path / "records.pth")  # one for each
    arguments = (free_port(), str(tmp_path), max_bad)
    mp.start_processes(skip_on_two_ranks, arguments, nprocs=2, start_method="fork")  # spares two imports of torch
    ranks = [torch.load(tmp_path / f"{rank}.pth") for rank in range(2)]
    assert ranks[0]["bad"] == ranks[1]["bad"] == [(2, "missing"), (7, "missing")]
    assert [row[1] for row in rows(tmp_path / "skipped.csv")[1:]] == ["102", "107"]
    if max_bad == 0.1:  # neither rank alone has too many
        for rank, name in zip(ranks, ("skipped.csv", "skipped.csv.rank1"), strict=True):
            assert "2 of 10 training images cannot be read" in rank["error"]
            assert f"listed in {tmp_path / name}." in rank["error"]
            assert rows(tmp_path / name) == rows(tmp_path / "skipped.csv")
    else:
        assert not ranks[0]["error"] and not ranks[1]["error"]
