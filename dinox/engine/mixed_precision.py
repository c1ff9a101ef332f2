"""``train.amp``: whether and how training runs in half precision. Without the key, or with null, it does not."""

from dataclasses import dataclass, fields
from typing import Literal

from omegaconf import DictConfig, OmegaConf

from dinox.engine.loss_scaling import MAX_SKIPS_IN_A_ROW

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class MixedPrecision:
    """What the section says, which ``dinox.engine.settings`` checks; keys of one's own in it are left out."""

    enabled: bool = False
    dtype: Precision = "bf16"
    max_skips_in_a_row: int = MAX_SKIPS_IN_A_ROW

    @classmethod
    def of(cls, cfg: DictConfig) -> "MixedPrecision":
        options = OmegaConf.select(cfg, "train.amp") or {}
        return cls(**{field.name: options[field.name] for field in fields(cls) if field.name in options})

    @property
    def precision(self) -> Precision:
        return self.dtype if self.enabled else "fp32"
