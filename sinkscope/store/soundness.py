"""What a run file must hold besides right checksums, which whoever makes a file can make too.

Readers may be given files by others. What does not hold here would crash HDF5, reach outside the file, fill the memory,
or fail somewhere in the middle of the work. Every function raises `ValueError` with the reason.
"""

from typing import Annotated, Any

import h5py
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from sinkscope.errors import first_problem
from sinkscope.store.integrity import CommitRecord
from sinkscope.store.layout import (
    JSON_ATTRIBUTES,
    KIND_NAMES,
    STATUS_COMPLETE,
    STATUS_RUNNING,
    RunAttributes,
    RunPlan,
    Statistics,
)
from sinkscope.store.limits import LARGEST_INTEGER
from sinkscope.store.tokens import differences

BLOSC2 = 32026
FILTERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, BLOSC2)
DEEPEST = 3
"""Groups inside each other, the root included."""

UNPACKED, RATIO = 2**28, 1024
"""A dataset may take so many bytes, and so many more for each byte of its file."""

Count = Annotated[int, Field(ge=0, le=LARGEST_INTEGER)]
Ascii = Annotated[str, Field(pattern=r"^[ -~]*$")]


class _Values(BaseModel):
    """Only what is read is checked; all may be missing."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Settings(_Values):
    keep: str = ""
    sampled_tokens: Count = 0
    attention_texts: Count = 0
    attention_images: Count = 0
    max_samples: Count | None = None
    max_tokens: Count | None = None
    attention: bool = True
    chat_template: bool | None = None
    attention_layers: list[Count] = []


class _Rank(_Values):
    rank: Count
    ranks: Annotated[int, Field(ge=1, lt=2**20)]


class _Calibration(_Values):
    fingerprint: Ascii = ""
    source: str = ""
    samples: Count = 0
    tokens: Count = 0
    kinds: dict[str, Count] = {}
    bos: str | dict[str, Any] | None = None
    part: _Rank | None = None


class _Backbone(_Values):
    model_type: Annotated[str, Field(max_length=128)] = ""
    hidden_size: Count | None = None
    num_layers: Count | None = None
    num_heads: Count | None = None
    num_kv_heads: Count | None = None
    vocab_size: Count | None = None


JSON_VALUES: dict[str, TypeAdapter[Any]] = {
    "settings": TypeAdapter(_Settings),
    "calibration": TypeAdapter(_Calibration),
    "backbone": TypeAdapter(_Backbone),
    "versions": TypeAdapter(dict[str, str]),
}


def check_datasets(file: h5py.File) -> None:
    """Nothing lies outside the file or in a form that no run file has: checked before any of it is read."""
    _check_group(file, file.id.get_filesize(), DEEPEST)


def _check_group(group: h5py.Group, size: int, depth: int) -> None:
    for name in group:
        place = f"{group.name.rstrip('/')}/{name}"
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{place} is a link to something else")
        entry = group[name]
        if isinstance(entry, h5py.Dataset):
            _check_dataset(entry, place, size)
        elif not isinstance(entry, h5py.Group) or depth == 1:
            raise ValueError(f"{place} belongs to no run file")
        else:
            _check_group(entry, size, depth - 1)


def _check_dataset(dataset: h5py.Dataset, place: str, size: int) -> None:
    creation = dataset.id.get_create_plist()
    if creation.get_layout() == h5py.h5d.VIRTUAL or creation.get_external_count():
        raise ValueError(f"{place} has its data in another file")
    filters = [creation.get_filter(number)[0] for number in range(creation.get_nfilters())]
    if not set(filters) <= set(FILTERS):
        raise ValueError(f"{place} is packed in an unknown way")
    if dataset.dtype.kind not in "iuf" and h5py.check_string_dtype(dataset.dtype) is None:
        raise ValueError(f"{place} holds no numbers")
    check_attribute_forms(dataset)
    if dataset.shape is None or dataset.nbytes > (UNPACKED + RATIO * size if dataset.chunks else size):
        raise ValueError(f"{place} is larger than its file")


def check_attribute_forms(entry: h5py.HLObject) -> None:
    """Attributes are numbers or one text each: a list of texts can lead to one and the same text many times."""
    for name in entry.attrs:
        attribute = entry.attrs.get_id(name)
        text = h5py.check_string_dtype(attribute.dtype) is not None and attribute.shape == ()
        if attribute.dtype.kind not in "iuf" and not text:
            raise ValueError(f"its attribute {name} is neither a number nor a text")


def check_record(record: CommitRecord, plan: RunPlan) -> None:
    """The committed state is one that the plan has."""
    good = isinstance(record.samples_done, int) and 0 <= record.samples_done <= plan.num_samples
    good = good and record.slot in (0, 1) and isinstance(record.attention, str)
    good = good and record.status in (STATUS_RUNNING, STATUS_COMPLETE)
    if not good or (record.status == STATUS_COMPLETE and record.samples_done != plan.num_samples):
        raise ValueError("its record tells of a state that cannot be")


def check_attributes(attributes: RunAttributes) -> None:
    """Attributes are of their types, and their numbers are possible."""
    for name in JSON_ATTRIBUTES:
        _check_json(name, getattr(attributes, name))
    settings = attributes.settings
    if (settings.get("keep") == "all" and "sampled_tokens" not in settings) or (
        ("attention_texts" in settings) != ("attention_images" in settings)
    ):
        raise ValueError("its settings are not whole")
    _require(1 <= attributes.num_layers < 2**16 and 1 <= attributes.hidden_size < 2**24, "num_layers or hidden_size")
    _require(-LARGEST_INTEGER - 1 <= attributes.seed <= LARGEST_INTEGER, f"seed {attributes.seed}")


def check_plan(plan: RunPlan) -> None:
    """Attributes are sound, and all numbers of samples, tokens, layers and dimensions are possible."""
    attributes, calibration = plan.attributes, plan.attributes.calibration
    check_attributes(attributes)
    _require(all(0 < level <= 1 for level in plan.levels), "the levels")
    _require(1 <= plan.largest <= attributes.hidden_size and plan.top_tokens >= 1, "the numbers of values kept")
    tokens, samples = plan.tokens, plan.num_samples
    _require(len(tokens.lengths) == samples, "/tokens/sample")
    _require(tokens.places is None or tokens.places.min(initial=0) >= 0, "/tokens/position")
    _require(tokens.kind.max(initial=0) < len(KIND_NAMES), "/tokens/kind")
    _require(np.array_equal(np.sort(plan.order), np.arange(samples)), "/progress/order")
    _require(plan.fingerprints.shape == (samples,), "/samples/fingerprint")
    for name, rows in (("sampled", plan.sampled_tokens), ("attention", plan.attention_tokens)):
        _require(rows.ndim == 1 and all((steps > 0).all() for steps in differences(rows)), f"/{name}/token")
        _require(not len(rows) or (rows[0] >= 0 and rows[-1] < len(tokens)), f"/{name}/token")
    every, attended = (np.diff(plan.spans(name))[:, 0] for name in ("tokens", "attention/token"))
    _require(((attended == 0) | (attended == every)).all(), "/attention/token")
    _require((plan.part is None) == (calibration.get("part") is None), "/samples/part")
    if plan.part is not None:
        _require(plan.part.shape == (2, samples) and plan.part.min(initial=0) >= 0, "/samples/part")
        _require(
            "fingerprint" in calibration and calibration["part"]["rank"] < calibration["part"]["ranks"], "its rank"
        )


def check_statistics(statistics: Statistics, plan: RunPlan) -> None:
    """Rows are among the tokens, and numbers are finite."""
    for name, array in statistics.arrays().items():
        if array.dtype.kind == "f":
            _require(bool(np.isfinite(array).all()), f"/statistics/{name}")
    rows = statistics.topk_token
    _require(rows.min(initial=-1) >= -1 and rows.max(initial=-1) < len(plan.tokens), "/statistics/topk_token")
    _require(statistics.topk_odds.min(initial=0) >= 0 and int(statistics.count) >= 0, "/statistics")


def check_rows(name: str, rows: NDArray[Any], plan: RunPlan, length: int) -> None:
    """The rows of a sample of `length` tokens: dimensions and places are among those that there are, numbers finite."""
    if name in ("largest/dim", "peaks/place"):
        low, high = (0, plan.attributes.hidden_size) if name == "largest/dim" else (-1, length)
        _require(not rows.size or (rows.min() >= low and rows.max() < high), f"/{name}")
    elif rows.dtype == np.float16:  # Nearly all of a file: by their bits, which is faster.
        _require(not rows.size or int((rows.view(np.uint16) & 0x7C00).max()) < 0x7C00, f"/{name}")
    elif rows.dtype.kind == "f":
        # Attention that was not measured is NaN.
        bad = np.isinf(rows) if name.startswith("attention/") else ~np.isfinite(rows)
        _require(not bad.any(), f"/{name}")


def _check_json(name: str, value: Any) -> None:
    try:
        JSON_VALUES[name].validate_python(value)
    except ValidationError as error:
        raise ValueError(first_problem(error, name)) from error


def _require(good: bool, what: str) -> None:
    if not good:
        raise ValueError(f"{what} cannot be so")
