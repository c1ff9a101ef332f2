"""Tables for the terminal."""

from collections.abc import Sequence


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines of equally wide columns, two spaces apart: the first one to the left, all others, which are numbers, to
    the right. A header's line breaks make more lines of it."""
    head = [cell.split("\n") for cell in header]
    height = max(len(cell) for cell in head)
    lines = [[([""] * (height - len(cell)) + cell)[i] for cell in head] for i in range(height)] + [*map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:]))]).rstrip()
        for first, *rest in lines
    )
