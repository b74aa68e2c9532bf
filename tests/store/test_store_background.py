"""Writing from a thread: order, waiting, commits and errors."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_runs import make_plan, make_rows, make_statistics

from sinkscope.errors import NonFiniteActivationError, StoreError
from sinkscope.store.background import WAITING, BackgroundWriter
from sinkscope.store.layout import RunPlan, SampleRows
from sinkscope.store.places import OpenPlaces
from sinkscope.store.reader import RunReader
from sinkscope.store.writer import RunWriter


def write(background: BackgroundWriter, plan: RunPlan, done: int) -> None:
    rows = [make_rows(plan, int(plan.order[done]))]
    background.write(lambda: rows, lambda: make_statistics(plan, done + 1))


def write_all(writer: RunWriter, plan: RunPlan) -> None:
    with BackgroundWriter(writer, 0) as background:
        for done in range(6):
            write(background, plan, done)
        background.complete(lambda: make_statistics(plan, 6))


def test_a_run_is_as_one_written_directly(tmp_path: Path) -> None:
    plan = make_plan()
    with RunWriter.create(tmp_path / "direct.h5", plan) as writer:
        for done, sample in enumerate(plan.order, start=1):
            writer.commit_batch([make_rows(plan, int(sample))], make_statistics(plan, done))
        writer.complete(make_statistics(plan, 6))
    with RunWriter.create(tmp_path / "run.h5", plan) as writer:
        write_all(writer, plan)
        assert writer.is_complete
    with RunReader(tmp_path / "run.h5") as one, RunReader(tmp_path / "direct.h5") as other:
        one.verify()
        for layer in range(4):
            for first, second in zip(one.largest(layer), other.largest(layer), strict=True):
                assert first.tobytes() == second.tobytes()
        assert one.statistics.topk_odds.tobytes() == other.statistics.topk_odds.tobytes()


def test_who_computes_waits_only_when_batches_pile_up(tmp_path: Path) -> None:
    plan, go_on = make_plan(), threading.Event()

    def slow() -> Iterator[SampleRows]:
        go_on.wait()
        yield make_rows(plan, int(plan.order[0]))

    with RunWriter.create(tmp_path / "run.h5", plan) as writer, BackgroundWriter(writer, 1e9) as background:
        background.write(slow, lambda: make_statistics(plan, 1))
        for done in range(1, 1 + WAITING):
            write(background, plan, done)
        threading.Timer(0.2, go_on.set).start()
        began = time.monotonic()
        write(background, plan, 1 + WAITING)  # No room for one more until the first is written.
        assert time.monotonic() - began > 0.05
    with RunReader(tmp_path / "run.h5") as reader:
        assert reader.progress == (0, 6)  # Nothing was committed: it was not time.


def test_what_was_handed_over_is_written_when_the_computation_is_interrupted(tmp_path: Path) -> None:
    plan = make_plan()

    def interrupted(writer: RunWriter) -> None:
        with BackgroundWriter(writer, 0) as background:
            write(background, plan, 0)
            write(background, plan, 1)
            raise KeyboardInterrupt

    with RunWriter.create(tmp_path / "run.h5", plan) as writer, pytest.raises(KeyboardInterrupt):
        interrupted(writer)
    with RunReader(tmp_path / "run.h5") as reader:
        reader.verify()
        assert reader.progress == (2, 6)
        assert int(reader.statistics.count) == 20


def test_a_full_disk_is_one_error_and_nothing_is_written_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, put = make_plan(), OpenPlaces.put

    def full(self: OpenPlaces, name: str, *args: object) -> None:
        if name == "largest/value" and written:
            raise OSError(28, "No space left on device")
        written.append(name)
        put(self, name, *args)  # type: ignore[arg-type]

    with RunWriter.create(tmp_path / "run.h5", plan) as writer:
        written = ["already"]
        monkeypatch.setattr(OpenPlaces, "put", full)
        with pytest.raises(StoreError, match=r"cannot write .*No space left.*--resume"):
            write_all(writer, plan)
    assert "progress/record" not in written
    with RunReader(tmp_path / "run.h5") as reader:
        assert reader.progress == (0, 6)


@pytest.mark.parametrize("later", [True, False])
def test_errors_of_the_rows_surface(tmp_path: Path, later: bool) -> None:
    plan = make_plan()

    def broken() -> list[SampleRows]:
        raise NonFiniteActivationError("the hidden state entering layer 2 is not finite")

    def fail(writer: RunWriter) -> None:
        with BackgroundWriter(writer, 0) as background:
            background.write(broken, lambda: make_statistics(plan, 1))
            if later:  # Otherwise the end of the context raises it.
                background.complete(lambda: make_statistics(plan, 6))

    with RunWriter.create(tmp_path / "run.h5", plan) as writer:
        with pytest.raises(NonFiniteActivationError, match="layer 2"):
            fail(writer)
        assert all(thread.name != "sinkscope writer" for thread in threading.enumerate())
