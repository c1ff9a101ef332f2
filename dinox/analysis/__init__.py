"""Looking into models."""

from dinox.analysis.complexity import Complexity, count_parameters, measure_complexity

__all__ = ["Complexity", "count_parameters", "measure_complexity"]
