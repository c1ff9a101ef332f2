"""Tiles cover an image, and an object that several tiles see is one detection."""

from itertools import pairwise

import pytest
import torch
from detectron2.structures import Boxes, Instances

from dinox.inference.tiling import Tile, make_tiles, merge_tiles
from tests.inference.marker import picture


def found(tile, *boxes, scores=None, classes=None):
    instances = Instances((tile.y1 - tile.y0, tile.x1 - tile.x0))
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.tensor(scores or [0.5] * len(boxes))
    instances.pred_classes = torch.tensor(classes or [0] * len(boxes), dtype=torch.int64)
    return instances


def merged(*tiles_and_boxes, height=100, width=200):
    """Pairs of a tile and its Instances; the image as a whole is left out if it is not among them."""
    if tiles_and_boxes[0][0] != WHOLE:
        tiles_and_boxes = ((WHOLE, found(WHOLE)), *tiles_and_boxes)
    tiles, detections = zip(*tiles_and_boxes)
    return merge_tiles(tiles, detections, height=height, width=width, overlap=20)


@pytest.mark.parametrize("height, width", [(1, 1), (100, 100), (101, 100), (250, 1000), (99, 333), (3, 4000)])
def test_tiles_cover_every_pixel_and_overlap(height, width):
    whole, *tiles = make_tiles(height, width, size=100, overlap=0.25)
    assert whole == Tile(0, 0, width, height)
    assert bool(tiles) == (max(height, width) > 100)
    seen = torch.zeros(height, width, dtype=torch.bool)
    for tile in tiles or [whole]:
        assert tile.x1 - tile.x0 == min(100, width) and tile.y1 - tile.y0 == min(100, height)
        assert min(tile.x0, tile.y0) >= 0 and tile.x1 <= width and tile.y1 <= height
        seen[tile.y0 : tile.y1, tile.x0 : tile.x1] = True
    assert seen.all()
    starts = sorted({tile.x0 for tile in tiles})
    assert all(second - first <= 75 for first, second in pairwise(starts))


WHOLE = Tile(0, 0, 200, 100)
LEFT, RIGHT = Tile(0, 0, 110, 100), Tile(90, 0, 200, 100)


def test_boxes_are_shifted_into_the_image():
    result = merged((LEFT, found(LEFT)), (RIGHT, found(RIGHT, [20, 10, 40, 30])))
    assert result.image_size == (100, 200)
    assert result.pred_boxes.tensor.tolist() == [[110, 10, 130, 30]]


def test_an_object_in_two_tiles_is_one_and_of_two_classes_two():
    pairs = [(LEFT, found(LEFT, [92, 10, 106, 30], scores=[0.4])), (RIGHT, found(RIGHT, [2, 10, 16, 31], scores=[0.8]))]
    assert merged(*pairs).scores.tolist() == pytest.approx([0.8])
    pairs[1] = (RIGHT, found(RIGHT, [2, 10, 16, 31], scores=[0.8], classes=[1]))
    assert merged(*pairs).pred_classes.tolist() == [1, 0]


def test_a_fragment_at_an_inner_edge_gives_way_to_the_whole_even_with_a_better_score():
    """At the left tile's right edge only the first 10 of 60 pixels of the object are seen."""
    fragment, whole = found(LEFT, [100, 10, 110, 30], scores=[0.9]), found(RIGHT, [10, 10, 70, 30], scores=[0.5])
    assert merged((LEFT, fragment), (RIGHT, whole)).pred_boxes.tensor.tolist() == [[100, 10, 160, 30]]


def test_a_box_at_the_border_of_the_image_is_no_fragment():
    at_border, around = found(LEFT, [0, 10, 10, 30]), found(LEFT, [0, 0, 60, 60])
    both = Instances.cat([at_border, around])
    assert len(merged((LEFT, both), (RIGHT, found(RIGHT)))) == 2


def test_a_fragment_of_nothing_else_stays():
    assert len(merged((LEFT, found(LEFT, [100, 10, 110, 30])), (RIGHT, found(RIGHT)))) == 1


def test_of_the_whole_image_only_objects_larger_than_the_overlap_count():
    """A small one that it sees badly would be a second detection beside the tile's."""
    coarse = found(WHOLE, [8, 8, 28, 28], [10, 40, 120, 60])
    result = merged((WHOLE, coarse), (LEFT, found(LEFT, [10, 10, 20, 20])), (RIGHT, found(RIGHT)))
    assert result.pred_boxes.tensor.tolist() == [[10, 40, 120, 60], [10, 10, 20, 20]]


def test_no_detections_in_any_tile():
    assert len(merged((LEFT, found(LEFT)), (RIGHT, found(RIGHT)))) == 0


def test_a_small_object_in_a_large_image_is_found_in_tiles_only(make_predictor):
    """Shrunk from 640 to 64 pixels, two pixels are gray."""
    image = picture(height=640, width=640, red=(301, 421, 303, 423))
    assert len(make_predictor()(image)) == 0
    instances = make_predictor(tile=128, batch_size=4)(image)
    assert instances.image_size == (640, 640)
    assert instances.pred_boxes.tensor[0].tolist() == pytest.approx([301, 421, 303, 423], abs=2)
    assert len(instances) == 1


def test_an_object_larger_than_a_tile_is_found_in_the_whole_image(make_predictor):
    instances = make_predictor(tile=64)(picture(height=200, width=200, blue=(20, 30, 180, 170)))
    assert instances.pred_boxes.tensor.tolist()[0] == pytest.approx([20, 30, 180, 170], abs=4)
    assert len(instances) == 1


def test_an_image_that_fits_into_a_tile_is_not_cut(make_predictor):
    predictor = make_predictor(tile=100)
    predictor(picture(height=60, width=80))
    assert predictor.detector.model.batch_sizes == [1]
