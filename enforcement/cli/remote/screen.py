"""
Output on a terminal.

Names come from other people, so that no character of them may do anything but be seen. Results go to standard output,
and all else to standard error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from typing import TYPE_CHECKING, Final

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from rich.progress import Progress

BARS: Final = " ▁▂▃▄▅▆▇█"
_STYLES: Final = {"+": "green", "~": "yellow", "-": "red"}


def safe(value: object) -> str:
    r"""Return a value as text, with an escape such as ``\x1b`` in place of each character that is not printable."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in str(value))


def show(*lines: str, error: bool = False) -> None:
    """Print lines, each of which may begin with the sign of a change, which gives it a colour on a terminal."""
    console = _console(error=error)
    for line in lines:
        style = _STYLES.get(line.lstrip()[:1], "") if line.lstrip()[1:2] == " " else ""
        console.print(Text(safe(line), style), soft_wrap=True)


def change_words(line: Mapping[str, str]) -> str:
    """Return in a line what REST says of one field: its ``part``, ``field``, and the values or the ``text``."""
    what = " ".join(filter(None, (line["text"], line["field"])))
    values = " -> ".join(filter(None, (line["before"], line["after"])))
    return ": ".join(filter(None, (line["part"], what, values)))


def show_json(value: object) -> None:
    """Print one JSON object. Control characters in it are escaped, as JSON does."""
    # The escapes of JSON leave characters that turn the direction of a line.
    print(json.dumps(value, indent=2, ensure_ascii=True))


def write_utf8(text: str) -> None:
    """Write the text of a file to standard output, in UTF-8 whatever the encoding of the terminal is."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()
    else:
        sys.stdout.write(text)


def show_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows in columns that are as wide as they have to be."""
    show(*table_lines(head, rows))


def table_lines(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return the lines of a table. Numbers are aligned to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [all(isinstance(value, int) for value in column) for column in _columns(cells, len(head))]
    texts = [[safe(name) for name in head], *([_shown(value) for value in row] for row in cells)]
    widths = [max(cell_len(row[index]) for row in texts) for index in range(len(head))]
    return ["  ".join(_padded(row[i], widths[i], right=numeric[i]) for i in range(len(head))).rstrip() for row in texts]


def _columns(cells: list[list[object]], count: int) -> Iterator[list[object]]:
    return ([row[index] for row in cells] for index in range(count))


def _cell(value: object) -> object:
    return value if isinstance(value, int) and not isinstance(value, bool) else safe("-" if value is None else value)


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _padded(text: str, width: int, *, right: bool) -> str:
    space = " " * (width - cell_len(text))
    return space + text if right else text + space


def bars(numbers: Sequence[int]) -> str:
    """Return a plot of numbers in one line, a character each. Only 0 is shown as a blank."""
    most = max(numbers, default=0)
    return "".join(BARS[-(-number * (len(BARS) - 1) // most)] if number else BARS[0] for number in numbers)


def squeezed(numbers: Sequence[int], most: int) -> tuple[list[int], int]:
    """Return at most so many sums of neighbours, and how many numbers each is the sum of. The last may be of fewer."""
    each = max(1, -(-len(numbers) // most))
    return [sum(numbers[start : start + each]) for start in range(0, len(numbers), each)], each


def plot_width() -> int:
    """Return how many characters a plot may have beside its name and its scale."""
    return max(20, _console().width - 30)


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Progress]:
    """Show on a terminal how much of some work is done. The block calls ``update(0, completed=...)``."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # few commands need it

    console = _console(error=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        shown.add_task(what, total=total)
        yield shown


class _PipeConsole(Console):
    """A console that raises BrokenPipeError if nobody reads any more. That of Rich would end the program."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _console(*, error: bool = False) -> Console:
    """Return a console for the present standard output or error. Names are shown as they are, and never as markup."""
    stream = sys.stderr if error else sys.stdout
    return _PipeConsole(file=stream, highlight=False, markup=False, emoji=False)
