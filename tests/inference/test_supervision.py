"""Detections for the package "supervision", whether it is installed or not."""

import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest

from dinox.inference import to_supervision
from tests.inference.marker import picture


@dataclass
class Detections:
    """The constructor of supervision.Detections."""

    xyxy: np.ndarray
    confidence: np.ndarray
    class_id: np.ndarray
    data: dict


def test_boxes_scores_classes_and_names_go_over(make_predictor, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", types.SimpleNamespace(Detections=Detections))
    predictor = make_predictor()
    instances = predictor(picture(red=(10, 20, 30, 50), blue=(50, 5, 70, 25)))
    detections = predictor.to_supervision(instances)
    assert np.array_equal(detections.xyxy, instances.pred_boxes.tensor.numpy())
    assert detections.confidence.tolist() == pytest.approx([0.9, 0.5])
    assert detections.class_id.tolist() == [0, 1]
    assert detections.data["class_name"].tolist() == ["red", "blue"]
    assert to_supervision(instances).data == {}
    assert predictor.to_supervision(predictor(picture())).xyxy.shape == (0, 4)


def test_without_the_package_its_installation_is_named(make_predictor, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    predictor = make_predictor()
    with pytest.raises(ImportError, match="pip install supervision"):
        predictor.to_supervision(predictor(picture()))
