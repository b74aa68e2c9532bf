"""Tables of calibration data: which column holds the texts, and reading Parquet files."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sinkscope.calibration.lines import LONGEST_LINE
from sinkscope.errors import InputError
from sinkscope.files import check_readable

HEAD_ROWS = 16
"""Rows that are looked at to choose a column."""

BATCH_ROWS = 256


def text_column(rows: Iterable[Mapping[str, Any]]) -> str | None:
    """The column that holds the texts: "text" where there is one with strings, else the one with the longest strings.

    None where no column holds strings.
    """
    characters: dict[str, int] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, str):
                characters[name] = characters.get(name, 0) + len(value)
    return "text" if "text" in characters else max(characters, key=lambda name: characters[name], default=None)


def missing_extra(what: str, package: str) -> InputError:
    """The error where the packages of the extra ``data`` are needed and not installed."""
    return InputError(f"reading {what} needs {package}, which is not installed; pip install 'sinkscope[data]'")


def read_parquet(path: Path) -> Iterator[str]:
    """The texts of a Parquet file, row by row; empty ones and nulls are left out.

    Raises
    ------
    InputError
        If pyarrow is not installed, the file cannot be read, no column holds strings, or a text is longer than
        `LONGEST_LINE`.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise missing_extra(str(path), "pyarrow") from error
    row = 0
    try:
        check_readable(path)
        with parquet.ParquetFile(path) as file:
            name = _parquet_column(file)
            if name is None:
                shown = ", ".join(file.schema_arrow.names) or "no columns"
                raise InputError(f"the columns of {path} hold no strings ({shown}); give a file with a column of texts")
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=[name]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    if len(text or "") > LONGEST_LINE:
                        raise InputError(
                            f"the text in row {row} of {path} has more than {LONGEST_LINE >> 20} MiB; cut it"
                        )
                    if isinstance(text, str) and text.strip():
                        yield text
    except InputError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"cannot read the texts {path} ({reason}); write the Parquet file again") from error


def _parquet_column(file: Any) -> str | None:
    """`text_column` by the types of the columns, and by the first rows with strings where several are left. Nothing is
    read of the others, whose values Python may not be able to hold."""
    names = [field.name for field in file.schema_arrow if _holds_strings(field.type)]
    if "text" in names:
        return "text"
    heads = file.iter_batches(batch_size=HEAD_ROWS, columns=names) if names else ()
    return next((name for head in heads if (name := text_column(head.to_pylist())) is not None), None)


def _holds_strings(kind: Any) -> bool:
    """Whether a type of Arrow is one of strings, also where every string is stored once."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))
