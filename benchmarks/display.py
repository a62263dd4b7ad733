"""Tables and the progress bar.

rich is imported where something is shown: the processes of a benchmark import this file as well.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table. The first column is names, the others are figures; a row may be shorter."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    # Where nobody looks, there is no width to keep to.
    Console(width=None if sys.stdout.isatty() else 160).print(made)


@contextlib.contextmanager
def progress(what: str, steps: int) -> Iterator[Callable[[str], None]]:
    """A bar on standard error of so many steps, if that is a terminal.

    Gives a function that is called at the start of each step with its name.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as shown:
        task = shown.add_task(what, total=steps)
        begun = False

        def step(name: str) -> None:
            nonlocal begun
            shown.update(task, advance=int(begun), description=f"{what}: {name}")
            begun = True

        yield step
