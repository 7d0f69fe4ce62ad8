"""Tables in Markdown."""

from collections.abc import Collection, Iterable, Sequence


def markdown_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: Collection[int] = (0,)
) -> str:
    """Table in Markdown, without a line end after the last row.

    Args:
        head: names of the columns.
        rows: cells of each row.
        text_columns: indices of the columns that are aligned on the left; the others hold numbers.
    """
    marks = ("---" if column in text_columns else "---:" for column in range(len(head)))
    lines = [_line(head), f"|{'|'.join(marks)}|", *map(_line, rows)]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)
