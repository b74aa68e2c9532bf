"""Rows for the terminal: a table where it is wide enough, one paragraph for each row where it is not."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

SPACES_BETWEEN = 2


@dataclass(frozen=True)
class Rows:
    """Cells below titles, of which no word is ever cut.

    Attributes
    ----------
    titles : sequence of str
        The first one's cells name the rows.
    cells : sequence of sequences of Text
    wrapping : collection of str
        Titles of the columns whose cells may take several lines; these are aligned to the left.
    left : collection of str
        Titles of further columns that are.
    """

    titles: Sequence[str]
    cells: Sequence[Sequence[Text]]
    wrapping: Collection[str] = ()
    left: Collection[str] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._table() if self._least_width() <= options.max_width else self._paragraphs()

    def _least_width(self) -> int:
        columns = zip(self.titles, *self.cells, strict=True)
        widths = [
            max(_least_width(cell if isinstance(cell, str) else cell.plain, title in self.wrapping) for cell in column)
            for title, column in zip(self.titles, columns, strict=True)
        ]
        return sum(widths) + SPACES_BETWEEN * (len(widths) - 1)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, SPACES_BETWEEN, 0, 0), header_style="dim")
        for title in self.titles:
            left = title in self.wrapping or title in self.left
            table.add_column(title, justify="left" if left else "right", no_wrap=title not in self.wrapping)
        for row in self.cells:
            table.add_row(*row)
        return table

    def _paragraphs(self) -> Table:
        """Lines after the first of each row hang below its text."""
        table = Table.grid(padding=(0, SPACES_BETWEEN, 0, 0))
        table.add_column(no_wrap=True)
        for first, *others in self.cells:
            named = zip(self.titles[1:], others, strict=True)
            told = Text("; ").join(Text.assemble((f"{title} ", "dim"), cell) for title, cell in named if cell.plain)
            table.add_row(Text.assemble((f"{self.titles[0]} ", "dim"), first), told)
        return table


def _least_width(text: str, wraps: bool) -> int:
    return max((cell_len(part) for part in (text.split() if wraps else [text])), default=0)
