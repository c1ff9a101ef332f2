"""How fast deformable attention is here, beside other implementations of it."""

from dinox.analysis.operators.benchmark import Measurement, OperatorReport, benchmark_operator
from dinox.analysis.operators.cases import CASES, Case

__all__ = ["CASES", "Case", "Measurement", "OperatorReport", "benchmark_operator"]
