"""Writing from a thread, so that whoever computes waits only where the disk is the limit."""

import queue
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from sinkscope.store.layout import SampleRows, Statistics
from sinkscope.store.writer import RunWriter

WAITING = 2
"""Batches that may wait: one is written while the next is made, and a pause of either is bridged."""

COMMIT_SHARE = 0.02
"""Part of the time that commits may take."""


class BackgroundWriter:
    """A `RunWriter` that works in a thread of its own, in the order of the calls; a context manager.

    What is to be written is made in the thread as well, by the functions that are given: there it may wait for a
    device. An error of the thread is raised by the next call, and nothing is written after it.

    Parameters
    ----------
    writer : RunWriter
        Used by nothing else inside the context.
    commit_seconds : float
        Least time between commits, which is lengthened where they are slow; 0 to commit after every batch.
    """

    def __init__(self, writer: RunWriter, commit_seconds: float) -> None:
        self._writer = writer
        self._commit_seconds = commit_seconds
        self._committed = time.monotonic()
        self._commit_took = 0.0
        self._error: BaseException | None = None
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._work, name="sinkscope writer", daemon=True)

    def write(self, rows: Callable[[], Iterable[SampleRows]], statistics: Callable[[], Statistics]) -> None:
        """Write the samples of a batch, and commit them where it is time.

        Parameters
        ----------
        rows : callable
            Gives the rows of the next samples of the plan's order.
        statistics : callable
            Gives the accumulators over all samples so far, these included.
        """
        now, least = time.monotonic(), max(self._commit_seconds, self._commit_took / COMMIT_SHARE)
        commit = not self._commit_seconds or now - self._committed >= least
        if commit:
            self._committed = now

        def job() -> None:
            for entry in rows():
                self._writer.write_sample(entry)
            if commit:
                began = time.monotonic()
                self._writer.commit(statistics())
                self._commit_took = time.monotonic() - began

        self._put(job)

    def complete(self, statistics: Callable[[], Statistics]) -> None:
        """Wait until all is written, commit it, and mark the run complete."""
        self._put(lambda: self._writer.complete(statistics()))
        self.wait()

    def wait(self) -> None:
        """Wait until all that was handed over is written."""
        self._jobs.join()
        self._raise()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Also after an error, what was handed over is written.
        self._jobs.put(None)
        self._thread.join()
        if error is None:
            self._raise()

    def _put(self, job: Callable[[], None]) -> None:
        self._raise()
        self._jobs.put(job)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                if self._error is None:
                    job()
            except BaseException as error:
                self._error = error
            finally:
                self._jobs.task_done()
