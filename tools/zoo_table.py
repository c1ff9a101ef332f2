"""Writes the tables of all configs: projects/README.md, and in each projects/<paper>/README.md what is between markers.

python tools/zoo_table.py            write them
python tools/zoo_table.py --check    say what is stale, and exit with 1 if something is

Parts and parameters come from the configs, AP from projects/<paper>/results.yaml, GFLOPs from projects/complexity.json.
That file holds what was counted before; only models that are new or changed are counted again, each once, however many
configs train it. With --recount all are.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zoo_rows import NONE, Row, collect, count_gflops, read_complexity, write_complexity

from dinox.analysis import DETECTION_SIZE
from dinox.utils.whole_files import written_whole

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "python tools/zoo_table.py"
BEGIN, END = "<!-- configs: written by tools/zoo_table.py -->", "<!-- end of configs -->"


def render(rows: list[Row], root: Path) -> dict[Path, str]:
    """File -> what it has to hold. Raises ValueError for a README without markers."""
    projects: dict[str, list[Row]] = {}
    for row in rows:
        projects.setdefault(row.project, []).append(row)
    texts = {root / "projects" / "README.md": _all_configs(projects)}
    for project, own in projects.items():
        readme = root / "projects" / project / "README.md"
        if readme.is_file():
            texts[readme] = _between_markers(readme, "\n".join(_project_table(own)))
    return texts


def _all_configs(projects: Mapping[str, list[Row]]) -> str:
    height, width = DETECTION_SIZE
    lines = [
        "# Configs",
        "",
        f"Written by `{COMMAND}`. The names are those of `dinox.model_zoo` and of `--config-file`. Parameters are all",
        f"that a model trains with; GFLOPs are of detection on one image of {height}x{width}, a multiply-add as one;",
        "AP is as the paper publishes it, or measured by us, on the named data.",
    ]
    for project, rows in projects.items():
        columns = [column for column in rows[0].parts if any(row.parts[column] for row in rows)]
        header = ["config", *columns, "epochs", "parameters", "GFLOPs", "AP on", "published", "measured"]
        cells = [
            [
                f"`{row.name}`",
                *(row.parts[column] for column in columns),
                _number(row.epochs),
                _millions(row.parameters),
                _gflops(row),
                f"`{row.data}`",
                _ap(row.published),
                _ap(row.measured),
            ]
            for row in rows
        ]
        lines += ["", f"## [{project}]({project})", "", *_table(header, cells), *_measurements(rows)]
    return "\n".join(lines) + "\n"


def _project_table(rows: list[Row]) -> Iterator[str]:
    header = ["config", "epochs", "AP published", "AP measured", "parameters (published)", "GFLOPs (published)"]
    cells = [
        [
            f"`{row.config}`",
            _number(row.epochs),
            f"{_ap(row.published)} ({row.published['source']})" if row.published else NONE,
            f"{_ap(row.measured)} on `{row.data}`" if row.measured else NONE,
            _with(_millions(row.parameters), row.published.get("parameters")),
            _with(_gflops(row), row.published.get("gflops")),
        ]
        for row in rows
    ]
    yield from _table(header, cells)
    yield from _measurements(rows)


def _measurements(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        if row.measured:
            m = row.measured
            yield from (
                "",
                f"Measured: `{row.config}`, AP {m['ap']}, by `{m['command']}` on {m['machine']}, {m['date']}.",
            )


def _table(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    for cells in (header, ["---"] * len(header), *rows):
        yield f"| {' | '.join(cells)} |"


def _between_markers(file: Path, table: str) -> str:
    text = file.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(
            f"{file}: expected the lines {BEGIN!r} and {END!r}, with the table of its configs between them"
        )
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:g}"


def _ap(result: Mapping[str, Any]) -> str:
    return f"{result['ap']:.1f}" if result else NONE


def _gflops(row: Row) -> str:
    if row.gflops is None:
        return NONE
    return f"{row.gflops:,.0f}" if row.gflops >= 100 else f"{row.gflops:.1f}"


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:.1f} M"


def _with(ours: str, published: Any) -> str:
    return ours if published is None else f"{ours} ({published})"


# ---------------------------------------------------------------------------------------------------------- the command


def stale(rows: list[Row], root: Path) -> list[str]:
    """What has to be written again: names of configs whose GFLOPs are not those of today's model, and of files."""
    stored = read_complexity(root)
    changed = [row.name for row in rows if stored.get(row.name, {}).get("model") != row.model]
    gone = [name for name in stored if name not in {row.name for row in rows}]
    files = [
        str(file.relative_to(root))
        for file, text in render(rows, root).items()
        if not file.is_file() or file.read_text(encoding="utf-8") != text
    ]
    return changed + gone + files


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say what is stale")
    parser.add_argument("--recount", action="store_true", help="count the GFLOPs of all models again")
    args = parser.parse_args(argv)
    if args.check:
        found = stale(collect(ROOT), ROOT)
        print(f"stale, run `{COMMAND}`: {', '.join(found)}" if found else "up to date")
        return 1 if found else 0
    rows = collect(ROOT)
    write_complexity(rows, count_gflops(rows, recount=args.recount), ROOT)
    for file, text in render(collect(ROOT), ROOT).items():
        with written_whole(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(f"wrote {file.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
