"""``train.amp``: whether and how training runs in half precision. Without the key, or with null, it does not."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, get_args

from omegaconf import DictConfig, OmegaConf

from dinox.engine.loss_scaling import MAX_SKIPS_IN_A_ROW
from dinox.utils.suggest import did_you_mean

Precision = Literal["fp32", "bf16", "fp16"]
SETTING = "train.amp"


@dataclass(frozen=True)
class MixedPrecision:
    """``enabled``, ``dtype`` and ``max_skips_in_a_row`` are the keys; there is no null among their values: a run whose
    gradients overflow for ever ends at some time."""

    enabled: bool = False
    dtype: Precision = "bf16"
    max_skips_in_a_row: int = MAX_SKIPS_IN_A_ROW

    @classmethod
    def of(cls, cfg: DictConfig) -> "MixedPrecision":
        """Raises ValueError naming key, what was expected, and value."""
        options = OmegaConf.select(cfg, SETTING)
        if options is None:
            return cls()
        known = [field.name for field in fields(cls)]
        if not isinstance(options, Mapping):
            raise ValueError(f"{SETTING}: expected {', '.join(known)}, or null, got {options!r}")
        for name in options:
            if name not in known:
                raise ValueError(f"{SETTING}.{name}: there is no such setting.{did_you_mean(str(name), known)}")
        return cls(**options)

    def __post_init__(self):
        most = self.max_skips_in_a_row
        if not isinstance(self.enabled, bool):
            raise ValueError(f"{SETTING}.enabled: expected true or false, got {self.enabled!r}")
        if self.dtype not in get_args(Precision):
            raise ValueError(f"{SETTING}.dtype: expected one of {', '.join(get_args(Precision))}, got {self.dtype!r}")
        if not isinstance(most, int) or isinstance(most, bool) or most < 1:
            raise ValueError(
                f"{SETTING}.max_skips_in_a_row: expected a whole number of at least 1, got {most!r}. Leave it out for "
                f"{MAX_SKIPS_IN_A_ROW}; a large one is no limit"
            )

    @property
    def precision(self) -> Precision:
        return self.dtype if self.enabled else "fp32"
