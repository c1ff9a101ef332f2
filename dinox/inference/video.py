"""Detections in videos: an MP4 with boxes, and the detections of every frame, one json object per line."""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import Instances

from dinox.data import DataError
from dinox.inference.pictures import Drawer
from dinox.inference.predictor import Predictor
from dinox.inference.results import detections_as_json
from dinox.utils.whole_files import written_whole

_ENCODERS = ("libx264", "libopenh264", "mpeg4")  # the first that this PyAV has
_DEFAULT_RATE = 25  # frames per second, of files that do not say


def require_av() -> Any:
    """The module ``av``. Raises ValueError that names the extra."""
    try:
        import av
    except ImportError as error:
        raise ValueError(
            f"videos need the package av ({error}): install it with `pip install av`, or dinox with its extra, "
            "`pip install 'dinox[video]'`"
        ) from error
    return av


@dataclass(frozen=True)
class Frame:
    """pixels: (H, W, 3) uint8, RGB, upright. seconds: since the video's beginning."""

    index: int
    seconds: float
    pixels: np.ndarray


def predict_video(
    predictor: Predictor, path: str, *, lines_file: Path, video_file: Path | None = None
) -> Iterator[Instances]:
    """Detect objects in every frame, and yield its detections when they are written. Memory stays flat.

    Args:
        lines_file: gets one line of json for each frame: ``frame`` (from 0), ``seconds``, ``detections``.
        video_file: gets an MP4 with boxes, without sound, of the same frame rate; None leaves it out.

    Raises DataError if the video cannot be read. Of one that is damaged further on, what comes before is written.
    """
    with _Reader(path) as video, ExitStack() as files:
        lines = files.enter_context(written_whole(lines_file))
        write_line = files.enter_context(open(lines, "w", encoding="utf-8")).write
        draw = _no_drawing
        if video_file is not None:
            temporary = files.enter_context(written_whole(video_file))
            draw = files.enter_context(_Writer(temporary, rate=video.rate, class_names=predictor.class_names)).draw
        waiting: deque[Frame] = deque()

        def pixels() -> Iterator[tuple[str, np.ndarray]]:
            for frame in video:
                waiting.append(frame)
                yield f"{path}, frame {frame.index}", frame.pixels

        for instances in predictor.detect(pixels()):
            frame = waiting.popleft()
            found = detections_as_json(instances, predictor.class_names)
            line = {"frame": frame.index, "seconds": round(frame.seconds, 4), "detections": found}
            write_line(json.dumps(line) + "\n")
            draw(frame.pixels, instances)
            yield instances
    if video.damage is not None:
        raise video.damage


def upright(pixels: np.ndarray, rotation: int) -> np.ndarray:
    """``rotation``: degrees counterclockwise that a player turns the frame by, as phones write it."""
    return np.ascontiguousarray(np.rot90(pixels, k=round(rotation / 90)))


def _no_drawing(pixels: np.ndarray, instances: Instances) -> None:
    pass


class _Reader:
    """The frames of a video's first stream. ``rate``: per second. ``damage``: why they ended too early."""

    def __init__(self, path: str):
        self._path = path
        self._av = require_av()
        self._container: Any = None
        self.damage: DataError | None = None

    def __enter__(self) -> "_Reader":
        try:
            self._container = self._av.open(self._path)
        except (OSError, ValueError) as error:  # av's errors are both
            raise DataError(f"Video {self._path} cannot be read: {error.strerror or error}. Replace it") from error
        if not self._container.streams.video:
            self._container.close()
            raise DataError(f"Video {self._path}: there are no pictures in it")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.rate = self._stream.average_rate or Fraction(_DEFAULT_RATE)
        return self

    def __exit__(self, *error: Any) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        try:
            for frame in self._container.decode(self._stream):
                pixels = upright(frame.to_ndarray(format="rgb24"), getattr(frame, "rotation", 0))
                seconds = float(index / self.rate) if frame.time is None else frame.time
                yield Frame(index, seconds, pixels)
                index += 1
        except self._av.error.FFmpegError as error:
            reason = f"cut off or damaged behind frame {index} ({error.strerror})"
            self.damage = DataError(f"Video {self._path} is {reason}; what comes before it is written")
        if index == 0:
            raise DataError(f"Video {self._path} cannot be read: it has no frame that can be decoded. Replace it")


class _Writer:
    """An MP4 of drawn frames; the first one settles its size."""

    def __init__(self, path: Path, *, rate: Fraction, class_names: Sequence[str]):
        self._av = require_av()
        self._container = self._av.open(str(path), "w", format="mp4")
        self._rate = rate
        self._stream: Any = None
        self._drawer = Drawer(class_names, even_sides=True)

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: Any) -> None:
        if kind is None and self._stream is not None:
            self._container.mux(self._stream.encode())
        self._container.close()

    def draw(self, pixels: np.ndarray, instances: Instances) -> None:
        picture = self._drawer.draw(pixels, instances)
        if self._stream is None:
            self._stream = self._container.add_stream(self._encoder(), rate=self._rate)
            self._stream.width, self._stream.height = picture.size
            self._stream.pix_fmt = "yuv420p"
        if picture.size != (self._stream.width, self._stream.height):
            picture = picture.resize((self._stream.width, self._stream.height))
        self._container.mux(self._stream.encode(self._av.VideoFrame.from_image(picture)))

    def _encoder(self) -> str:
        return next(name for name in _ENCODERS if name in self._av.codec.codecs_available)
