"""The criterion: from predictions and targets to named losses."""

from dinox.modeling.criterion.criterion import GROUP_SUFFIXES, Criterion

__all__ = ["GROUP_SUFFIXES", "Criterion"]
