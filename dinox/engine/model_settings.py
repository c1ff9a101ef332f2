"""The keys of ``train`` that change how a model computes, and not what: ``compile`` and ``activation_checkpointing``.

Configs may lack either, which then is off.
"""

from omegaconf import DictConfig, ListConfig
from torch import nn

from dinox.engine import activation_checkpointing, compilation
from dinox.engine.activation_checkpointing import checkpoint_activations
from dinox.engine.compilation import CompileOptions, compile_parts
from dinox.engine.segments import check_parts
from dinox.utils.suggest import did_you_mean


def check_model_settings(train: DictConfig) -> None:
    """Raises ValueError naming key, what was expected, and value."""
    check_parts(_checkpointed(train), activation_checkpointing.PARTS, setting=activation_checkpointing.SETTING)
    _compile_options(train)


def apply_model_settings(model: nn.Module, train: DictConfig, *, training: bool = True) -> None:
    """In place, to a model that is on its device and not wrapped yet. ``training``: it will be trained."""
    if training:
        checkpoint_activations(model, _checkpointed(train))
    options = _compile_options(train)
    if options is not None:
        compile_parts(model, options)


def _checkpointed(train: DictConfig) -> list[str] | object:
    names = train.get("activation_checkpointing")
    return [] if names is None else list(names) if isinstance(names, ListConfig) else names


def _compile_options(train: DictConfig) -> CompileOptions | None:
    settings = train.get("compile")
    if settings is None:
        return None
    if not isinstance(settings, DictConfig):
        raise ValueError(f"{compilation.SETTING}: expected enabled, parts, backend and dynamic, got {settings!r}")
    given = {name: list(value) if isinstance(value, ListConfig) else value for name, value in settings.items()}
    enabled = given.pop("enabled", False)
    if not isinstance(enabled, bool):
        raise ValueError(f"{compilation.SETTING}.enabled: expected true or false, got {enabled!r}")
    known = list(CompileOptions.__dataclass_fields__)
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ValueError(f"{compilation.SETTING}: expected enabled, {', '.join(known)}, got {name!r}.{hint}")
    if not enabled:  # torch's compiler, which takes a second to import, knows the backends
        check_parts(given.get("parts", compilation.PARTS), compilation.PARTS, setting=f"{compilation.SETTING}.parts")
        return None
    return CompileOptions(**given)
