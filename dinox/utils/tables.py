"""Tables for the terminal."""

from collections.abc import Collection, Sequence


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, texts: Collection[int] = (0,)) -> str:
    """Lines of equally wide columns, two spaces apart: ``texts``, by default the first one, to the left, all others,
    which are numbers, to the right. A header's line breaks make more lines of it."""
    head = [cell.split("\n") for cell in header]
    height = max(len(cell) for cell in head)
    lines = [[([""] * (height - len(cell)) + cell)[i] for cell in head] for i in range(height)] + [*map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
