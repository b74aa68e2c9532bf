"""Calibration data from a dataset of the hub or a local one, streamed: only what is used is read."""

import contextlib
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sinkscope.calibration.columns import HEAD_ROWS, missing_extra, text_column
from sinkscope.calibration.images import DEFAULT_PROMPT
from sinkscope.calibration.samples import Picture, PictureBytes, Sample, open_picture
from sinkscope.errors import InputError

DEFAULT_ROWS = 128
"""Rows that are used where neither samples nor tokens are asked for: the usual size of calibration sets."""

ROW_CHARACTERS = 8192
"""A longer text gives its beginning: about 2,000 tokens, and no single book can fill the whole set."""

TOKEN_CHARACTERS, PICTURE_TOKENS = 8, 64
"""Where so many tokens are asked for, reading stops after so many characters for each, a picture counted as this many:
more than enough for any tokenizer, and the run then takes as many as were asked for."""

SHUFFLED_ROWS = 1000
"""Most rows that are read ahead and mixed, because many datasets are sorted by class or source. Mixed here, because how
`datasets` shuffles a stream depends on its version."""

EMPTY_ROWS = 1000
"""Rows without text or picture, one after another, after which reading stops."""

READ_AHEAD = 2**22
"""Bytes of a Parquet file that are asked for at once; `datasets` itself reads 32 MiB and more for the first row."""

RETRIES, RETRY_SECONDS = 2, 1
"""How often, and how long after, a connection that broke is tried anew, besides what the hub's own library does in
about half a minute each time. `datasets` would go on for many minutes without a word."""
PATIENCE = re.compile(r"STREAMING_(OPEN|READ)_(MAX_RETRIES|\w*INTERVAL)")

PROMPT_COLUMNS = ("prompt", "question", "instruction", "text")

BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".txt": "text", ".arrow": "arrow"}


@dataclass(frozen=True)
class DatasetSamples:
    """What was read.

    Attributes
    ----------
    samples : list of Sample
        At least one; all of them texts, or all of them pictures.
    source : str
        Name, revision, config, split and column, in words.
    """

    samples: list[Sample]
    source: str

    @property
    def pictures(self) -> bool:
        return bool(self.samples[0].images)


def read_dataset(name: str, *, samples: int | None = None, tokens: int | None = None, seed: int = 0) -> DatasetSamples:
    """A seeded choice from the first rows of a dataset, as texts or as pictures with prompts.

    A column of pictures is used where there is one, with the prompts of a column called "prompt", "question",
    "instruction" or "text"; else the column "text", or the one with the longest strings.

    Parameters
    ----------
    name : str
        ``ID[@REVISION][:CONFIG[:SPLIT]]`` with the id of a dataset on the hub, or a local folder or file in its place.
        The split is "train" where nothing is said, or else the first one.
    samples : int, optional
        Read so many rows; by default `DEFAULT_ROWS` where `tokens` is not given either.
    tokens : int, optional
        Stop where this many tokens have certainly been read.
    seed : int
        Of the choice.

    Raises
    ------
    InputError
        If `datasets` is not installed, the dataset cannot be read, has no such config or split, or holds neither texts
        nor pictures.
    """
    try:
        import datasets
    except ImportError as error:
        raise missing_extra(f"the dataset {name}", "datasets") from error
    wanted = samples or (None if tokens else DEFAULT_ROWS)
    try:
        with _quiet(datasets):
            rows, origin = _open(datasets, name)
            pictures = _picture_column(datasets, rows)
            strings = _string_columns(rows)
            if pictures is not None:
                rows = rows.cast_column(pictures[0], pictures[1])
            elif strings:
                rows = rows.select_columns(strings)
            with contextlib.closing(iter(rows)) as stream:
                head = list(itertools.islice(stream, HEAD_ROWS))
                named = "text" if "text" in strings else text_column(head)
                column = named if pictures is None else pictures[0]
                if column is None:
                    shown = ", ".join(rows.features or (head[0] if head else ["no rows"]))
                    raise InputError(f"the dataset {name} holds neither texts nor pictures ({shown}); choose another")
                block = min(SHUFFLED_ROWS, 8 * wanted) if wanted else SHUFFLED_ROWS
                mixed = _mixed(itertools.chain(head, stream), block, seed)
                found = _take(mixed, name, column, pictures is not None, wanted, tokens)
    except InputError:
        raise
    except Exception as error:  # Whatever a library raises on data of others, over a network or not, is one line here.
        reason = " ".join(f"{error}".split())[:300] or type(error).__name__
        raise InputError(f"cannot read the dataset {name} ({reason}); {_remedy(error)}") from error
    if not found:
        raise InputError(
            f"the first rows of the dataset {name} hold nothing in {column}; choose another config or split"
        )
    return DatasetSamples(found, f"{origin}, {len(found)} rows of {column}")


def _open(datasets: Any, name: str) -> tuple[Any, str]:
    """The stream of one split, and where it comes from."""
    place, config, split = _parse(name)
    path = Path(place)
    if path.is_file():
        if path.suffix.lower() not in BUILDERS:
            raise InputError(f"{place} is no dataset file ({', '.join(BUILDERS)}); give such a file or a folder")
        builder = datasets.load_dataset_builder(BUILDERS[path.suffix.lower()], config, data_files=str(path))
    else:
        identifier, _, revision = (place, "", "") if path.exists() else place.partition("@")
        builder = datasets.load_dataset_builder(identifier, config, revision=revision or None)
    _read_little(builder.config)
    splits = builder.as_streaming_dataset()
    chosen = split or ("train" if "train" in splits else next(iter(splits)))
    if chosen not in splits:
        raise InputError(f"the dataset {name} has no split {chosen}; there are {', '.join(splits)}")
    # Of the hub, the builder knows the commit that a branch stands for.
    base = str(builder.base_path).removeprefix("hf://datasets/")
    origin = path.name if path.exists() else (base if "@" in base else place).rstrip("/")
    return splits[chosen], f"dataset {origin} ({builder.config.name}, {chosen}{_only(builder.config, path)})"


def _only(config: Any, folder: Path) -> str:
    """Which kinds of file are read, where a local folder has others too: `datasets` reads those of one kind."""
    if not folder.is_dir():
        return ""
    read = {Path(file).suffix.lower() for files in (config.data_files or {}).values() for file in files}
    visible = (file for file in folder.rglob("*") if not file.name.startswith("."))
    others = {file.suffix.lower() for file in visible if file.suffix.lower() in BUILDERS} - read
    return f", only its {', '.join(sorted(read))} files" if read and others else ""


def _read_little(config: Any) -> None:
    """Keep the reading of Parquet files from fetching far more than the few rows that are wanted."""
    if getattr(config, "fragment_scan_options", config) is None:
        import pyarrow
        from pyarrow.dataset import ParquetFragmentScanOptions

        cache = pyarrow.CacheOptions(prefetch_limit=0, range_size_limit=READ_AHEAD)
        config.fragment_scan_options = ParquetFragmentScanOptions(cache_options=cache)


def _remedy(error: Exception) -> str:
    """What to do where a dataset cannot be read."""
    from huggingface_hub.errors import HfHubHTTPError

    network = isinstance(error, (ConnectionError, TimeoutError, HfHubHTTPError))
    if network or type(error).__module__.startswith("httpx"):
        return "check the network, and try again later"
    if type(error).__name__ == "DatasetNotFoundError":
        return "check the name and the revision, and `hf auth login` for private and gated datasets"
    return "name it as ID[@REVISION][:CONFIG[:SPLIT]]"


def _parse(name: str) -> tuple[str, str | None, str | None]:
    """Place, config and split. A local path may hold colons itself."""
    parts = name.split(":")
    longest = next((n for n in range(len(parts), 0, -1) if Path(":".join(parts[:n])).exists()), 1)
    place, rest = ":".join(parts[:longest]), parts[longest:]
    if not place or len(rest) > 2:
        raise InputError(f"{name!r} names no dataset; write ID[@REVISION][:CONFIG[:SPLIT]] or a local folder or file")
    config, split = (*rest, "", "")[:2]
    return place, config or None, split or None


def _picture_column(datasets: Any, rows: Any) -> tuple[str, Any] | None:
    """Name of the first column of pictures, and its type without decoding: pictures that are not used stay bytes."""
    plain = datasets.Image(decode=False)
    for name, feature in (rows.features or {}).items():
        if isinstance(feature, datasets.Image):
            return name, plain
        if isinstance(getattr(feature, "feature", None), datasets.Image):
            return name, datasets.List(plain)
    return None


def _string_columns(rows: Any) -> list[str]:
    """The columns of strings, as far as the types are known: others may hold what Python cannot."""
    kinds = {name: getattr(feature, "dtype", None) for name, feature in (rows.features or {}).items()}
    return [name for name, kind in kinds.items() if kind in ("string", "large_string")]


def _mixed(rows: Iterator[Mapping[str, Any]], block: int, seed: int) -> Iterator[Mapping[str, Any]]:
    """The rows, each block of them in a random order."""
    generator = np.random.default_rng(seed)
    while found := list(itertools.islice(rows, block)):
        for place in generator.permutation(len(found)).tolist():
            yield found[place]


def _take(
    rows: Iterator[Mapping[str, Any]], name: str, column: str, pictures: bool, wanted: int | None, tokens: int | None
) -> list[Sample]:
    found: list[Sample] = []
    characters = empty = 0
    for number, row in enumerate(rows, start=1):
        sample = _picture_sample(row, column, f"row {number} of {name}") if pictures else _text_sample(row[column])
        if sample is None:
            empty += 1
            if empty >= EMPTY_ROWS:
                break
            continue
        found.append(sample)
        empty = 0
        characters += len(sample.text or sample.prompt or "") + len(sample.images) * PICTURE_TOKENS * TOKEN_CHARACTERS
        if len(found) == wanted or (tokens is not None and characters >= tokens * TOKEN_CHARACTERS):
            break
    return found


def _text_sample(value: Any) -> Sample | None:
    return Sample(text=value[:ROW_CHARACTERS]) if isinstance(value, str) and value.strip() else None


def _picture_sample(row: Mapping[str, Any], column: str, origin: str) -> Sample | None:
    values = row[column] if isinstance(row[column], list) else [row[column]]
    images = tuple(_picture(value, origin) for value in values if value is not None)
    if not images:
        return None
    for image in images:
        open_picture(image)  # A damaged picture is named now, not after an hour of profiling.
    texts = (row[name] for name in PROMPT_COLUMNS if name != column and isinstance(row.get(name), str))
    return Sample(images=images, prompt=next((text[:ROW_CHARACTERS] for text in texts if text.strip()), DEFAULT_PROMPT))


def _picture(value: Any, origin: str) -> Picture:
    if isinstance(value, Image.Image):  # `datasets` decodes the files of a folder on the hub whatever is asked of it.
        return open_picture(value)
    if value.get("bytes") is not None:
        return PictureBytes(value["bytes"], origin)
    if Path(value["path"]).is_file():
        return Path(value["path"])
    import fsspec

    with fsspec.open(value["path"], "rb") as file:
        return PictureBytes(file.read(), origin)


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Keep the libraries' notes and bars out of the output, and their patience within bounds; what matters in their
    notes is an error."""
    from huggingface_hub.utils import logging as hub_logging

    # Settings of `datasets`, such as STREAMING_READ_MAX_RETRIES; which ones there are depends on its version.
    before = {name: value for name, value in vars(datasets.config).items() if PATIENCE.fullmatch(name)}
    verbosity, of_hub = datasets.logging.get_verbosity(), hub_logging.get_verbosity()
    bars = not datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    hub_logging.set_verbosity(hub_logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        for name in before:
            setattr(datasets.config, name, RETRIES if name.endswith("RETRIES") else RETRY_SECONDS)
        yield
    finally:
        for name, value in before.items():
            setattr(datasets.config, name, value)
        datasets.logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(of_hub)
        if bars:
            datasets.enable_progress_bars()
