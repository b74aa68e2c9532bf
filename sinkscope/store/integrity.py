"""Checksums of a run file, and the record that commits a state of it."""

import json
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sinkscope.store.layout import RECORD_BYTES, STATUS_RUNNING, RunPlan, Statistics
from sinkscope.store.tokens import TOKEN_DTYPES


@dataclass(frozen=True)
class CommitRecord:
    """One committed state: which statistics slot and how many samples of `/progress/order` are valid."""

    sequence: int
    slot: int
    samples_done: int
    header_checksum: int
    statistics_checksum: int
    attention: str
    status: str = STATUS_RUNNING

    def encode(self) -> NDArray[np.uint8]:
        """The record as uint8 [RECORD_BYTES]: its CRC-32 in hexadecimal, then JSON, then zeros."""
        text = json.dumps(asdict(self)).encode("ascii")
        data = f"{zlib.crc32(text):08x}".encode("ascii") + text
        if len(data) > RECORD_BYTES:
            raise ValueError(f"a commit record of {len(data)} bytes does not fit into {RECORD_BYTES}")
        return np.frombuffer(data.ljust(RECORD_BYTES, b"\0"), dtype=np.uint8)

    @classmethod
    def decode(cls, data: NDArray[np.uint8]) -> "CommitRecord | None":
        """The record in uint8 [RECORD_BYTES], or None where it is torn or was never written."""
        raw = data.tobytes().rstrip(b"\0")
        if len(raw) < 8 or raw[:8] != f"{zlib.crc32(raw[8:]):08x}".encode("ascii"):
            return None
        return cls(**json.loads(raw[8:]))


def newest_record(slots: NDArray[np.uint8]) -> CommitRecord | None:
    """The valid record with the highest sequence number among uint8 [2, RECORD_BYTES]."""
    records = [record for record in map(CommitRecord.decode, slots) if record is not None]
    return max(records, key=lambda record: record.sequence, default=None)


def checksum(arrays: Iterable[NDArray[Any]]) -> int:
    """CRC-32 over the bytes of the arrays, one after another."""
    value = 0
    for array in arrays:
        # Bytes as they are: a copy of them would cost more than the sum.
        value = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, value)
    return value


def statistics_checksum(statistics: Statistics) -> int:
    """CRC-32 over all arrays of the statistics."""
    return checksum(statistics.arrays().values())


def header_checksum(plan: RunPlan) -> int:
    """CRC-32 over everything that is fixed before the first batch: attributes, token tables, choices."""
    attributes = asdict(plan.attributes)
    for mutable in ("status", "attention"):
        attributes.pop(mutable)
    text = json.dumps(
        [attributes, plan.top_tokens, plan.largest, list(plan.levels), sorted(plan.token_text.items())],
        sort_keys=True,
        default=dict,
    )
    columns = (block for name in TOKEN_DTYPES for _, block in plan.tokens.blocks(name))
    chosen = (plan.order, plan.sampled_tokens, plan.attention_tokens, plan.fingerprints)
    part = () if plan.part is None else (plan.part,)
    return zlib.crc32(text.encode("utf-8"), checksum(chain(columns, chosen, part)))
