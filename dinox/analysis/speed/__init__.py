"""How fast detectors train and detect, one config beside another."""

from dinox.analysis.speed.matching import MatchingMilliseconds, MatchingSpeed, benchmark_matching
from dinox.analysis.speed.rows import SpeedRow, Workload, measure_speed, measure_speed_apart, phase_columns

__all__ = [
    "MatchingMilliseconds",
    "MatchingSpeed",
    "SpeedRow",
    "Workload",
    "benchmark_matching",
    "measure_speed",
    "measure_speed_apart",
    "phase_columns",
]
