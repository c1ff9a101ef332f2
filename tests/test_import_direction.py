"""Imports inside dinox run one way (CONTRIBUTING.md), and versions are branched on in one place. Read from the sources.

Every import statement counts, also those inside functions and under TYPE_CHECKING: a name that has to be imported late
is a sign that it lives in the wrong place.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From the bottom up. A module may import those of its own group and of every group below it, except that
# the parts of `modeling` do not import each other.
MODELING_PARTS = (
    "backbone",
    "neck",
    "encoder",
    "queries",
    "decoder",
    "heads",
    "auxiliary",
    "criterion",
    "postprocess",
    "roi_heads",
)
GROUPS = (
    ("structures", "utils"),
    ("ops",),
    ("layers",),
    ("losses", "matching"),
    tuple(f"modeling.{part}" for part in MODELING_PARTS),
    ("modeling.meta_arch", "modeling"),  # "modeling" itself: its __init__.py, which re-exports
    ("checkpoint",),
    ("model_zoo",),
    ("data", "engine", "evaluation", "analysis", "export", "inference"),
    ("cli",),
    ("dinox",),  # the top level: dinox/__init__.py and dinox/__main__.py
)
RANK = {place: rank for rank, group in enumerate(GROUPS) for place in group}
# Usable by the meta-architecture, which detectron2 builds from a config, and by everything above; imports only these.
LEAVES = {"config": {"structures", "utils"}}
ABOVE_PARTS = RANK["modeling.meta_arch"]
OUTSIDE = ("configs", "projects", "tests", "tools")  # folders of the repository that the package does not know
COMPAT = "utils/compat.py"


def place_of(module: str) -> str | None:
    """The entry of the table above that a module belongs to, None for a module outside of dinox."""
    names = module.split(".")
    if names[0] != "dinox":
        return None
    if len(names) == 1 or names[1] == "__main__":
        return "dinox"
    if names[1] == "modeling" and len(names) > 2:
        return f"modeling.{names[2]}"
    return names[1]


def module_name(path: Path, package: Path) -> str:
    names = ["dinox", *path.relative_to(package).with_suffix("").parts]
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def is_module(module: str, package: Path) -> bool:
    path = package.joinpath(*module.split(".")[1:])
    return path.is_dir() or path.with_suffix(".py").is_file()


def imported_modules(path: Path, package: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module name) of everything that the file imports."""
    module = module_name(path, package)
    anchor = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = anchor[: len(anchor) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:  # `from dinox import data` imports dinox.data
                inner = f"{source}.{alias.name}"
                yield node.lineno, inner if source.startswith("dinox") and is_module(inner, package) else source


def why_forbidden(importer: str, imported: str) -> str | None:
    """None when a module of one place may import one of another place."""
    if importer == imported:
        return None
    for place in (importer, imported):
        if place not in RANK and place not in LEAVES:
            return f"dinox.{place} has no place in the table of tests/test_import_direction.py"
    if importer in LEAVES:
        return None if imported in LEAVES[importer] else f"{importer} is a leaf"
    if imported in LEAVES:
        return None if RANK[importer] >= ABOVE_PARTS else f"{imported} is for what is above modeling's parts"
    if RANK[importer] == RANK[imported] == RANK["modeling.decoder"]:
        return "parts of modeling do not import each other"
    if RANK[imported] > RANK[importer]:
        return f"{imported} is above {importer}"
    return None


def import_violations(package: Path) -> list[str]:
    found = []
    for path in sorted(package.rglob("*.py")):
        importer = place_of(module_name(path, package))
        for line, module in imported_modules(path, package):
            where = f"{path.relative_to(package.parent)}:{line}: imports {module}"
            if module.split(".")[0] in OUTSIDE:
                found.append(f"{where}: the package does not know the repository around it")
                continue
            imported = place_of(module)
            reason = why_forbidden(importer, imported) if imported else None
            if reason:
                found.append(f"{where}: {reason}")
    return found


def _mentions_version(node: ast.AST) -> bool:
    return any(
        (isinstance(part, ast.Attribute) and part.attr == "__version__")
        or (isinstance(part, ast.Attribute) and part.attr == "version_info")
        or (isinstance(part, ast.Name) and part.id == "__version__")
        or (isinstance(part, ast.Call) and ast.unparse(part.func) in ("metadata.version", "importlib.metadata.version"))
        for part in ast.walk(node)
    )


def version_branches(package: Path) -> list[str]:
    """Where a version is compared or taken apart, outside of compat. Printing one is fine."""
    found = set()
    for path in sorted(package.rglob("*.py")):
        if path == package / COMPAT:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            compared = isinstance(node, ast.Compare) and _mentions_version(node)
            parsed = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _takes_apart(node)
            if compared or parsed:
                found.add(
                    f"{path.relative_to(package.parent)}:{node.lineno}: branches on a version: use dinox/{COMPAT}"
                )
    return sorted(found)


def _takes_apart(call: ast.Call) -> bool:
    """x.__version__.split(...), version.parse(x.__version__)"""
    method = call.func.attr
    if method in ("split", "startswith", "partition"):
        return _mentions_version(call.func.value)
    return method in ("parse", "Version") and any(_mentions_version(argument) for argument in call.args)


# ---------------------------------------------------------------------------------------------------------- the claims


def test_imports_run_one_way():
    assert import_violations(ROOT / "dinox") == []


def test_versions_are_compared_only_in_compat():
    assert version_branches(ROOT / "dinox") == []


# --------------------------------------------------------------------------------- and that a violation would be found


def write_package(folder: Path, files: dict[str, str]) -> Path:
    package = folder / "dinox"
    for name, text in {"__init__.py": "", **files}.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return package


FORBIDDEN = {
    "upwards": ("layers/attention.py", "from dinox.modeling.meta_arch import DetectionTransformer"),
    "upwards, whole module": ("ops/library.py", "import dinox.layers.attention"),
    "from the package": ("structures/boxes.py", "from dinox import engine"),
    "relative": ("losses/box.py", "from ..modeling import criterion"),
    "relative, from an __init__": ("losses/__init__.py", "from ..engine import trainer"),
    "inside a function": ("utils/names.py", "def late():\n    from dinox.data import checks"),
    "parts of modeling": ("modeling/decoder/deformable.py", "from dinox.modeling.queries import groups"),
    "through modeling": ("modeling/decoder/deformable.py", "from dinox.modeling import meta_arch"),
    "a leaf from below": ("modeling/heads/box.py", "from dinox.config import load"),
    "a leaf that imports": ("config/loading.py", "from dinox.data import checks"),
    "the top level": ("engine/trainer.py", "import dinox"),
    "the command line": ("engine/trainer.py", "from dinox.cli import main"),
    "configs": ("model_zoo/zoo.py", "import configs.common.train"),
    "projects": ("cli/train.py", "from projects import train_net"),
    "a folder without a place": ("layers/attention.py", "from dinox.misc import things"),
}


@pytest.mark.parametrize("path, statement", FORBIDDEN.values(), ids=FORBIDDEN)
def test_a_forbidden_import_is_found(tmp_path, path, statement):
    existing = {"engine/__init__.py": "", "data/__init__.py": "", "modeling/queries/__init__.py": ""}
    existing |= {"modeling/meta_arch/__init__.py": "", "modeling/criterion/__init__.py": ""}
    package = write_package(tmp_path, {**existing, path: statement + "\n"})
    violations = import_violations(package)
    assert len(violations) == 1 and violations[0].startswith(f"dinox/{path}:"), violations


ALLOWED = {
    "downwards": (
        "modeling/decoder/deformable.py",
        "from dinox.layers import attention\nfrom dinox.structures import boxes",
    ),
    "within a part": ("modeling/queries/denoising.py", "from dinox.modeling.queries.groups import QueryGroup"),
    "relative, within a part": ("modeling/queries/denoising.py", "from .groups import QueryGroup"),
    "meta_arch imports parts": ("modeling/meta_arch/transformer.py", "from dinox.modeling.decoder import deformable"),
    "modeling re-exports": ("modeling/__init__.py", "from dinox.modeling.meta_arch import transformer"),
    "a leaf from above": ("cli/train.py", "from dinox import config\nfrom dinox.model_zoo import get"),
    "the zoo loads configs and weights": (
        "model_zoo/zoo.py",
        "from dinox.config.files import load\nfrom dinox.checkpoint import load_weights",
    ),
    "neighbours": ("engine/training.py", "from dinox.evaluation import evaluate"),
    "the top level imports": ("__init__.py", "from dinox import data, modeling"),
    "others": ("utils/names.py", "import torch, numpy as np\nfrom detectron2 import config"),
}


@pytest.mark.parametrize("path, statement", ALLOWED.values(), ids=ALLOWED)
def test_an_allowed_import_is_not_reported(tmp_path, path, statement):
    existing = {f"{name}/__init__.py": "" for name in ("data", "config", "modeling", "modeling/decoder", "layers")}
    assert import_violations(write_package(tmp_path, {**existing, path: statement + "\n"})) == []


@pytest.mark.parametrize(
    "statement",
    [
        "import torch\nif torch.__version__ >= '2.6': pass",
        "import torch\nNEW = tuple(torch.__version__.split('.')) > ('2',)",
        "import detectron2\nOLD = detectron2.__version__.startswith('0.6')",
        "from packaging import version\nimport torch\nV = version.parse(torch.__version__)",
        "import importlib.metadata\nOLD = importlib.metadata.version('detectron2') == '0.6'",
    ],
)
def test_a_branch_on_a_version_is_found_outside_of_compat_only(tmp_path, statement):
    text = statement + "\n"
    package = write_package(tmp_path, {"engine/trainer.py": text, COMPAT: text})
    violations = version_branches(package)
    assert violations and all(line.startswith("dinox/engine/trainer.py:") for line in violations), violations


def test_printing_a_version_is_no_branch(tmp_path):
    text = "import torch\nprint(f'torch {torch.__version__}')\n__version__ = '0.1.0'\n"
    assert version_branches(write_package(tmp_path, {"cli/doctor.py": text})) == []
