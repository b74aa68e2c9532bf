"""What is made before the first batch and grows with the tokens: the plan, the run file's tables, the shares."""

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.profile.subjects import load, texts
from benchmarks.scale.fits import least_seconds, line, traced
from sinkscope.calibration import default_texts
from sinkscope.capture.encode import encode
from sinkscope.capture.planning import CapturePlan, make_plan
from sinkscope.capture.settings import CaptureSettings
from sinkscope.capture.shares import deal, share_of
from sinkscope.store.layout import ATTENTION_MEASURED, stored_bytes
from sinkscope.store.reader import RunReader
from sinkscope.store.writer import RunWriter

TOKENS = (80_000, 160_000, 320_000, 640_000)
RANKS = (1, 8, 64, 1024)


def plans() -> dict[str, Any]:
    """Lines over the number of tokens: seconds, and bytes held and at most."""
    loaded, settings = load("tiny"), CaptureSettings()
    points: dict[str, list[tuple[float, float]]] = {}
    largest: CapturePlan | None = None
    for wanted in TOKENS:
        samples = texts(wanted)

        def made(samples: Any = samples) -> CapturePlan:
            return make_plan(loaded, samples, settings, ATTENTION_MEASURED, "benchmark")

        whole = made()
        count = float(len(whole.run.tokens))
        encoding = least_seconds(lambda samples=samples: encode(loaded, samples, settings.max_length))
        found = {"seconds to encode": encoding, "seconds for the rest of the plan": least_seconds(made) - encoding}
        found["bytes of the plan"], found["bytes while it is made"] = traced(made)
        found |= tables(whole)
        found["bytes while a share of 8 is made"] = traced(lambda whole=whole: share_of(whole, 0, 8))[1]
        for name, value in found.items():
            points.setdefault(name, []).append((count, float(value)))
        largest = whole
    assert largest is not None
    own = default_texts()
    characters = sum(sys.getsizeof(sample.text) for sample in own)
    ids = sum(len(entry) for entry in encode(loaded, own, settings.max_length))
    return {name: line(entry) for name, entry in points.items()} | {
        "bytes of a text for each token": characters / ids,
        "tokens of a batch": statistics.mean(
            int(largest.run.tokens.lengths[list(batch)].sum()) for batch in largest.batches
        ),
        "tokens of a sample": len(largest.run.tokens) / largest.run.num_samples,
        "microseconds to deal a batch": {
            str(ranks): 1e6 * least_seconds(lambda ranks=ranks: deal(largest, ranks)) / len(largest.batches)
            for ranks in RANKS
        },
    }


def tables(whole: CapturePlan) -> dict[str, float]:
    """Making a run file and opening it: seconds, bytes at most, and what it takes beside the rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.h5"

        def made() -> None:
            path.unlink(missing_ok=True)
            RunWriter.create(path, whole.run).close()

        making, while_made = least_seconds(made, 7), traced(made)[1]
        beside = path.stat().st_size - stored_bytes(whole.run)
        opening = least_seconds(lambda: RunReader(path).close(), 7)
        held, most = traced(lambda: RunReader(path))
    return {
        "seconds to make the file": making,
        "bytes while the file is made": while_made,
        "bytes of the file beside rows and accumulators": beside,
        "seconds to open the file": opening,
        "bytes of an open file": held,
        "bytes while it is opened": most,
    }
