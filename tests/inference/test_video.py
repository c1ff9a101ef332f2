"""Videos: an MP4 with boxes, and the detections of each frame."""

import json
import sys
from fractions import Fraction

import numpy as np
import pytest

from dinox.inference.files import Outputs, predict_files
from dinox.inference.inputs import find_inputs
from dinox.inference.video import upright
from tests.inference.marker import picture

av = pytest.importorskip("av")

NUM_FRAMES, RATE = 10, Fraction(30000, 1001)


def write_video(path, *, num_frames=NUM_FRAMES):
    """A red square that moves by 5 pixels per frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 80, 60, "yuv420p"
        for index in range(num_frames):
            pixels = picture(red=(5 * index, 20, 5 * index + 20, 40))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def run(predictor, path, folder, **options):
    return list(predict_files(predictor, find_inputs([str(path)]), Outputs(folder=folder, **options)))


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_frame_is_predicted_drawn_and_written(make_predictor, tmp_path):
    predictions = run(make_predictor(batch_size=4), write_video(tmp_path / "film.mov"), tmp_path / "out")
    assert [p.frame for p in predictions] == list(range(NUM_FRAMES))
    assert predictions[0].size == (60, 80)
    lines = lines_of(tmp_path / "out" / "film.mov.jsonl")
    assert [line["frame"] for line in lines] == list(range(NUM_FRAMES))
    assert lines[3]["seconds"] == pytest.approx(3 / float(RATE), abs=1e-3)
    for line in lines:
        [detection] = line["detections"]
        assert detection["class"] == "red"
        assert detection["box"] == pytest.approx([5 * line["frame"], 20, 5 * line["frame"] + 20, 40], abs=3)
    with av.open(str(tmp_path / "out" / "film.mov.mp4")) as drawn:
        stream = drawn.streams.video[0]
        assert stream.average_rate == RATE
        frames = [frame.to_ndarray(format="rgb24") for frame in drawn.decode(stream)]
    assert len(frames) == NUM_FRAMES and frames[0].shape == (360, 480, 3)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["film.mov.jsonl", "film.mov.mp4"]


def test_without_pictures_there_are_lines_only(make_predictor, tmp_path):
    run(make_predictor(), write_video(tmp_path / "film.mp4", num_frames=2), tmp_path / "out", pictures=False)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["film.mp4.jsonl"]


def test_a_file_that_is_no_video_is_an_error_and_leaves_nothing(make_predictor, tmp_path):
    (tmp_path / "film.mp4").write_text("no video")
    [prediction] = run(make_predictor(), tmp_path / "film.mp4", tmp_path / "out")
    assert "film.mp4 cannot be read" in prediction.error
    [prediction] = run(make_predictor(), tmp_path / "gone.mp4", tmp_path / "out")
    assert "gone.mp4 cannot be read: No such file" in prediction.error
    assert list((tmp_path / "out").iterdir()) == []


def test_of_a_damaged_video_what_comes_before_is_written(make_predictor, tmp_path, monkeypatch):
    real = av.open

    class Damaged:
        """The container, which fails behind three frames."""

        def __init__(self, container):
            self.container, self.streams = container, container.streams

        def decode(self, stream):
            for index, frame in enumerate(self.container.decode(stream)):
                if index == 3:
                    raise av.error.InvalidDataError(1094995529, "Invalid data found when processing input")
                yield frame

        def close(self):
            self.container.close()

    monkeypatch.setattr(
        av, "open", lambda path, *args, **options: real(path, *args, **options) if args else Damaged(real(path))
    )
    *frames, failure = run(make_predictor(), write_video(tmp_path / "film.mp4"), tmp_path / "out")
    assert len(frames) == 3
    assert "film.mp4 is cut off or damaged behind frame 3" in failure.error
    assert len(lines_of(tmp_path / "out" / "film.mp4.jsonl")) == 3
    with real(str(tmp_path / "out" / "film.mp4")) as drawn:
        assert len(list(drawn.decode(video=0))) == 3


@pytest.mark.parametrize("rotation, corner", [(0, (0, 0)), (-90, (0, 1)), (90, (-1, 0)), (180, (-1, 1))])
def test_frames_are_turned_as_players_show_them(rotation, corner):
    """Counterclockwise: by 90 degrees, the top left corner comes to the bottom left."""
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0, 0] = 255
    assert upright(pixels, rotation)[corner].tolist() == [255] * 3


def test_videos_have_no_place_in_coco_results(make_predictor, tmp_path):
    write_video(tmp_path / "film.mp4", num_frames=1)
    with pytest.raises(ValueError, match=r"--coco-json takes images, and .*film\.mp4 is a video"):
        run(make_predictor(), tmp_path / "film.mp4", tmp_path / "out", coco_json=tmp_path / "r.json")


def test_without_the_package_the_extra_is_named_before_anything_is_done(make_predictor, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"videos need the package av .*pip install 'dinox\[video\]'"):
        run(make_predictor(), tmp_path / "film.mp4", tmp_path / "out")
    assert not (tmp_path / "out").exists()
