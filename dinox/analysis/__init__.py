"""Looking into models and training runs."""

from dinox.analysis.activations import ActivationMemory, measure_activation_memory
from dinox.analysis.anchor_pictures import Panel, draw_anchors
from dinox.analysis.checkpoints import RunCheckpoint, find_checkpoints
from dinox.analysis.complexity import DETECTION_SIZE, Complexity, measure_complexity
from dinox.analysis.curves import AXIS_LABELS, DEFAULT_AXES, DEFAULT_METRICS, choose_metrics, draw_curves
from dinox.analysis.inputs import synthetic_inputs
from dinox.analysis.layer_scores import LayerScores, draw_layer_scores, read_layer_scores
from dinox.analysis.matching import MatchingReport, analyze_matching, check_output_folder, draw_matching
from dinox.analysis.model_report import ModelReport, analyze_model, report_rows
from dinox.analysis.non_finite import rerun_non_finite
from dinox.analysis.parameters import (
    ParameterCounts,
    count_parameters,
    count_parameters_by_part,
    parameters_read_in_detection,
)
from dinox.analysis.parts import watch_parts
from dinox.analysis.runs import Run, Series, is_evaluation, lower_is_better, read_run, read_runs
from dinox.analysis.timing import PhaseTimes, Repetitions, profile_phases

__all__ = [
    "AXIS_LABELS",
    "DEFAULT_AXES",
    "DEFAULT_METRICS",
    "DETECTION_SIZE",
    "ActivationMemory",
    "Complexity",
    "LayerScores",
    "MatchingReport",
    "ModelReport",
    "Panel",
    "ParameterCounts",
    "PhaseTimes",
    "Repetitions",
    "Run",
    "RunCheckpoint",
    "Series",
    "analyze_matching",
    "analyze_model",
    "check_output_folder",
    "choose_metrics",
    "count_parameters",
    "count_parameters_by_part",
    "draw_anchors",
    "draw_curves",
    "draw_layer_scores",
    "draw_matching",
    "find_checkpoints",
    "is_evaluation",
    "lower_is_better",
    "measure_activation_memory",
    "measure_complexity",
    "parameters_read_in_detection",
    "profile_phases",
    "read_layer_scores",
    "read_run",
    "read_runs",
    "report_rows",
    "rerun_non_finite",
    "synthetic_inputs",
    "watch_parts",
]
