"""Figures as words: numbers, intervals, sets, tables in Markdown. Pure functions."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

WIDTH = 120
MET = {True: "met", False: "**not met**", None: "nothing to judge"}
NOTHING = "-"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], left: int = 1) -> str:
    """A Markdown table whose first `left` columns are aligned to the left, the others to the right."""
    lines = [
        "| " + " | ".join(header) + " |",
        "|" + "|".join("---" if index < left else "---:" for index in range(len(header))) + "|",
    ]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def paragraph(text: str, width: int = WIDTH) -> str:
    """A paragraph in lines of at most 120 characters."""
    lines: list[str] = []
    for word in text.split():
        # A line must not begin with what Markdown takes for a list, a heading or a quotation.
        marker = re.fullmatch(r"[-+*#>]+|\d+[.)]", word)
        if lines and (marker or len(lines[-1]) + 1 + len(word) <= width):
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)


def bullet(text: str) -> str:
    """A list entry, wrapped and indented."""
    return "- " + paragraph(text, WIDTH - 2).replace("\n", "\n  ")


def folded(summary: str, content: str) -> str:
    """Content that a reader unfolds."""
    return f"<details>\n<summary>{summary}</summary>\n\n{content}\n\n</details>"


def number(value: float | None, digits: int = 3) -> str:
    """A number with fixed digits, or a dash."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def plain(value: Any) -> str:
    """A value of a bar: whole numbers and words as they are, fractions in four significant digits."""
    if value is None:
        return NOTHING
    if isinstance(value, list):
        return braces(value)
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.4g}"
    return f"{value:g}" if isinstance(value, (int, float)) else clean(str(value))


def between(interval: Sequence[float] | None, digits: int = 3) -> str:
    """An interval in brackets, or nothing."""
    return "" if not interval else f"[{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def with_interval(value: float | None, interval: Sequence[float] | None, digits: int = 3) -> str:
    """A number and its interval."""
    return f"{number(value, digits)} {between(interval, digits)}".rstrip()


def percent(value: float | None, digits: int = 0) -> str:
    """A share in percent, or a dash."""
    return NOTHING if value is None else f"{100 * value:.{digits}f} %"


def braces(dims: Sequence[int], limit: int = 6) -> str:
    """A set of dimensions, shortened where it is long."""
    if not dims:
        return "none"
    more = f", ... ({len(dims)})" if len(dims) > limit else ""
    return "{" + ", ".join(map(str, dims[:limit])) + more + "}"


def spans(layers: Sequence[int]) -> str:
    """Layers as ranges: 1, 3-5."""
    parts: list[list[int]] = []
    for layer in sorted(layers):
        if parts and layer == parts[-1][1] + 1:
            parts[-1][1] = layer
        else:
            parts.append([layer, layer])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts) or "none"


def code(text: str, length: int = 60, end: bool = False) -> str:
    """A piece of text as inline code that cannot break a table; the end of it where `end`, with an ellipsis."""
    shown = text.replace("\n", "⏎").replace("\t", "⇥").replace("\r", "")
    shown = "".join(character if character.isprintable() else "�" for character in shown)
    if len(shown) > length:
        shown = "…" + shown[-length + 1 :] if end else shown[: length - 1] + "…"
    shown = shown.replace("|", "¦")
    if not shown:
        return ""
    # Spaces at the edges, and spaces alone, would not be seen.
    inner = shown.strip(" ")
    lead = len(shown) - len(shown.lstrip(" "))
    shown = "␣" * lead + inner + "␣" * (len(shown) - lead - len(inner)) if inner else "␣" * len(shown)
    # A run of backticks inside needs a longer one around.
    fence = "`" * (max((len(run) for run in re.findall("`+", shown)), default=0) + 1)
    edge = " " if "`" in (shown[0], shown[-1]) else ""
    return f"{fence}{edge}{shown}{edge}{fence}"


def clean(text: str) -> str:
    """Text for a cell: one line, without bars."""
    return " ".join(text.split()).replace("|", "¦")


def join(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + f" and {words[-1]}" if words else "none"


def plural(count: int, singular: str, several: str | None = None) -> str:
    """A count with its noun."""
    return f"{count:,} {singular if count == 1 else several or singular + 's'}"


def extent(band: dict[str, Any]) -> str:
    """The layers of a band: 3-9, or 4."""
    first, last = band["first_layer"], band["last_layer"]
    return f"{first}" if first == last else f"{first}-{last}"
