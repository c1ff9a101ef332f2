"""Files in, pictures and json out: the work of ``dinox predict``."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np
from detectron2.structures import Instances

from dinox.data import DataError
from dinox.data.conversions import conversions_counted
from dinox.evaluation.drawing import save_whole
from dinox.inference.coco import Append, CocoTable, json_list
from dinox.inference.inputs import Input
from dinox.inference.pictures import Drawer
from dinox.inference.predictor import Predictor
from dinox.inference.video import predict_video, require_av
from dinox.utils.whole_files import NamedFile, check_outputs


@dataclass(frozen=True)
class Outputs:
    """What is written, and where.

    folder: for pictures, drawn videos and the lines of videos, under the names of the inputs. pictures: whether to
    draw. coco_json: COCO's results of all images. coco_images: a json whose ids they refer to (see ``CocoTable``).
    overwrite: whether files that are there are replaced.
    """

    folder: Path
    pictures: bool = True
    coco_json: Path | None = None
    coco_images: Path | None = None
    overwrite: bool = False

    def picture(self, file: Input) -> Path | None:
        """Where an image or a video is drawn."""
        return self.folder / file.drawn_name if self.pictures else None

    def lines(self, file: Input) -> Path:
        """Where the detections of a video's frames are."""
        return self.folder / file.relative.with_name(f"{file.relative.name}.jsonl")

    @property
    def coco_images_file(self) -> Path | None:
        """``results.images.json`` beside ``results.json``, for images that no json has given ids."""
        if self.coco_json is None or self.coco_images is not None:
            return None
        return self.coco_json.with_suffix(".images.json")

    def files_of(self, file: Input) -> list[Path]:
        found = [self.picture(file), self.lines(file) if file.is_video else None]
        return [path for path in found if path is not None]


@dataclass(frozen=True)
class Prediction:
    """What became of one image, or of one frame of a video.

    size: (height, width), instances: on the CPU, in the frame of the image; both None if there is an ``error``.
    frame: its index, of videos.
    """

    file: Input
    size: tuple[int, int] | None = None
    instances: Instances | None = None
    frame: int | None = None
    error: str | None = None


def check_files(
    inputs: Sequence[Input],
    outputs: Outputs,
    *,
    others_read: Sequence[NamedFile] = (),
    others_written: Sequence[NamedFile] = (),
) -> None:
    """Raises ValueError if a file would be written twice, over one that is read, or unasked over any.

    others_read, others_written: by whoever calls ``predict_files``, such as the weights.
    """
    read = [NamedFile("an input", file.path) for file in inputs]
    if outputs.coco_images is not None:
        read.append(NamedFile("--coco-images", outputs.coco_images))
    check_outputs(
        [*others_written, *_written(inputs, outputs)], inputs=[*read, *others_read], overwrite=outputs.overwrite
    )


def predict_files(predictor: Predictor, inputs: Sequence[Input], outputs: Outputs) -> Iterator[Prediction]:
    """Predict one input after the other, and write what ``outputs`` says; memory stays flat.

    What cannot be read is a Prediction with an error, and the others go on. The json is there when the iterator ends;
    when it is stopped before, it is not, but the pictures so far are.

    Raises ValueError before anything is written: two inputs would be written to one file, one would be overwritten, or
    a file that is there would; videos are among them without PyAV, or with a COCO json, which has no place for them.
    """
    table = None
    if outputs.coco_json is not None:
        table = CocoTable(
            predictor.class_names, category_ids=predictor.detector.category_ids, images_json=outputs.coco_images
        )
        table.check(inputs)
    _check_videos(inputs, outputs)
    check_files(inputs, outputs, others_read=[NamedFile("the weights", predictor.weights)])
    return _predict(predictor, inputs, outputs, table)


def _predict(
    predictor: Predictor, inputs: Sequence[Input], outputs: Outputs, table: CocoTable | None
) -> Iterator[Prediction]:
    with ExitStack() as files:
        files.enter_context(conversions_counted())
        append = None if table is None else files.enter_context(json_list(outputs.coco_json))
        drawer = Drawer(predictor.class_names)
        for are_videos, group in groupby(inputs, key=lambda file: file.is_video):
            if are_videos:
                for file in group:
                    yield from _predict_video(predictor, file, outputs)
                continue
            for prediction, image in _predict_images(predictor, group):
                if image is not None:
                    _write_image(prediction, image, outputs, drawer, table, append)
                yield prediction
        if outputs.coco_images_file is not None:
            table.write_images(outputs.coco_images_file)


def _predict_images(predictor: Predictor, files: Iterator[Input]) -> Iterator[tuple[Prediction, np.ndarray | None]]:
    """With the pixels of those that could be read."""
    while batch := list(islice(files, predictor.batch_size)):
        images, errors = {}, {}
        for file in batch:
            try:
                images[file] = predictor.read(file.path)
            except DataError as error:
                errors[file] = str(error)
        detections = _detect(predictor, images)
        for file in batch:
            found = errors.get(file) or detections[file]
            if isinstance(found, str):
                yield Prediction(file, error=found), None
            else:
                yield Prediction(file, images[file].shape[:2], found), images[file]


def _detect(predictor: Predictor, images: dict[Input, np.ndarray]) -> dict[Input, Instances | str]:
    """Detections, or what is wrong with an image. One that the model cannot take does not spoil the others' batch."""
    try:
        found = predictor.detect((file.path, image) for file, image in images.items())
        return dict(zip(images, found, strict=True))
    except ValueError as error:  # of ours, and of models that do not take every size
        if len(images) == 1:
            return dict.fromkeys(images, str(error))
    return {file: _detect(predictor, {file: image})[file] for file, image in images.items()}


def _write_image(
    prediction: Prediction,
    image: np.ndarray,
    outputs: Outputs,
    drawer: Drawer,
    table: CocoTable | None,
    append: Append | None,
) -> None:
    picture = outputs.picture(prediction.file)
    if picture is not None:
        save_whole(drawer.draw(image, prediction.instances), picture)
    if table is not None:
        height, width = prediction.size
        image_id = table.image_id(prediction.file.path, height=height, width=width)
        for result in table.results(image_id, prediction.instances):
            append(result)


def _predict_video(predictor: Predictor, file: Input, outputs: Outputs) -> Iterator[Prediction]:
    lines = outputs.lines(file)
    lines.parent.mkdir(parents=True, exist_ok=True)
    try:
        frames = predict_video(predictor, file.path, lines_file=lines, video_file=outputs.picture(file))
        for index, instances in enumerate(frames):
            yield Prediction(file, instances.image_size, instances, frame=index)
    except DataError as error:
        yield Prediction(file, error=str(error))


# --------------------------------------------------------------------------------------------------------------- checks


def _check_videos(inputs: Sequence[Input], outputs: Outputs) -> None:
    video = next((file for file in inputs if file.is_video), None)
    if video is None:
        return
    require_av()
    if outputs.coco_json is not None:
        raise ValueError(f"--coco-json takes images, and {video.path} is a video: predict videos in a run of their own")


def _written(inputs: Sequence[Input], outputs: Outputs) -> Iterator[NamedFile]:
    for file in inputs:
        for path in outputs.files_of(file):
            yield NamedFile(f"what is found in {file.path}", path)
    if outputs.coco_json is not None:
        yield NamedFile("--coco-json", outputs.coco_json)
    if outputs.coco_images_file is not None:
        yield NamedFile("the images of --coco-json", outputs.coco_images_file)
