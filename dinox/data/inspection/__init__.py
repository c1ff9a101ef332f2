"""Looking for faults in datasets before they are trained on: ``dinox check-data``."""

from dinox.data.inspection.fixing import FixReport, fix_dataset
from dinox.data.inspection.forecast import DINO_R50_4SCALE, MemoryForecast, StepMemory, measure_step_memory
from dinox.data.inspection.limits import ModelLimits
from dinox.data.inspection.output import as_data, describe, describe_fix, write_csv
from dinox.data.inspection.report import DatasetReport, FileOptions, inspect_dataset

__all__ = [
    "DINO_R50_4SCALE",
    "DatasetReport",
    "FileOptions",
    "FixReport",
    "MemoryForecast",
    "ModelLimits",
    "StepMemory",
    "as_data",
    "describe",
    "describe_fix",
    "fix_dataset",
    "inspect_dataset",
    "measure_step_memory",
    "write_csv",
]
