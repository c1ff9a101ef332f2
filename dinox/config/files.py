"""Names of configs and the files behind them.

``dino/dino_r50_4scale_12ep`` is ``projects/dino/configs/dino_r50_4scale_12ep.py``; ``common/data/coco_detr`` is
``configs/common/data/coco_detr.py``. They lie in the copy inside an installed package, else in the checkout.
"""

import os
from pathlib import Path, PurePosixPath

from dinox.config.errors import ConfigError
from dinox.utils.suggest import did_you_mean

_PACKAGE = Path(__file__).resolve().parents[1]
_PACKAGED_COPY = _PACKAGE / "model_zoo" / "configs"
_CHECKOUT = _PACKAGE.parent

_PROJECTS, _CONFIGS, _COMMON = "projects", "configs", "common"


def config_root() -> Path:
    """The folder that holds ``configs/`` and ``projects/``.

    Raises ConfigError if there is none: an installation without its data files.
    """
    for root in (_PACKAGED_COPY, _CHECKOUT):
        if (root / _PROJECTS).is_dir() and (root / _CONFIGS).is_dir():
            return root
    raise ConfigError(
        f"No configs: expected the folders '{_CONFIGS}' and '{_PROJECTS}' in {_PACKAGED_COPY} or {_CHECKOUT}. "
        f"This installation of dinox is incomplete: install it again, or work in a checkout."
    )


def list_config_names() -> list[str]:
    """All ``<project>/<config>`` names, sorted. Files whose name begins with an underscore are left out."""
    projects = config_root() / _PROJECTS
    names = []
    for file in projects.glob(f"*/{_CONFIGS}/**/*.py"):
        if not file.name.startswith("_"):
            project, _, *rest = file.relative_to(projects).with_suffix("").parts
            names.append("/".join([project, *rest]))
    return sorted(names)


def find_config(name: str) -> Path | None:
    """The file of a name, with or without ``.py``, or of a path as seen from ``config_root()``; else None."""
    parts = PurePosixPath(name.removesuffix(".py")).parts
    if len(parts) < 2 or ".." in parts or PurePosixPath(name).is_absolute():
        return None
    if parts[0] == _COMMON:
        relative = Path(_CONFIGS, *parts)
    elif parts[0] in (_PROJECTS, _CONFIGS):
        relative = Path(*parts)
    else:
        relative = _as_path("/".join(parts))
    file = config_root() / relative.with_name(relative.name + ".py")
    return file if file.is_file() else None


def require_config(name: str) -> Path:
    """The file of a name. Raises ConfigError with the nearest names."""
    file = find_config(name)
    if file is None:
        names = list_config_names()
        raise ConfigError(
            f"No config {name!r} in the model zoo.{did_you_mean(name.removesuffix('.py'), names)} "
            f"dinox.model_zoo.list_configs() lists all {len(names)}."
        )
    return file


def resolve_config(path_or_name: str | os.PathLike) -> Path:
    """The file of a path or else of a name in the zoo. Raises ConfigError with the nearest paths and names."""
    text = os.fspath(path_or_name)
    if os.path.isfile(text):
        return Path(text)
    file = find_config(text)
    if file is not None:
        return file
    folder = os.path.dirname(text) or "."
    siblings = os.listdir(folder) if os.path.isdir(folder) else []
    nearby = [os.path.join(os.path.dirname(text), entry) for entry in siblings if entry.endswith((".py", ".yaml"))]
    names = list_config_names()
    known = [str(_as_path(name)) for name in names] if text.startswith(_PROJECTS) else names
    hint = did_you_mean(text, nearby) or did_you_mean(text.removesuffix(".py"), known)
    raise ConfigError(
        f"Config {text!r} not found: it is neither a file (seen from {os.getcwd()}) nor a name in the model zoo.{hint}"
    )


def _as_path(name: str) -> Path:
    project, *rest = PurePosixPath(name).parts
    return Path(_PROJECTS, project, _CONFIGS, *rest)
