"""The passes of a process whose team holds the model together and whose first process writes the run file."""

from torch import Tensor

from sinkscope.backbone.loading import LoadedModel
from sinkscope.backbone.trial import TextEntry
from sinkscope.capture.collected import CollectedBatch
from sinkscope.capture.collector import Collector
from sinkscope.capture.measuring import Passes, batches_left
from sinkscope.capture.planning import CapturePlan


def follow(loaded: LoadedModel, entry: TextEntry, plan: CapturePlan, samples_done: int) -> None:
    """Run the batches that a file with so many samples lacks, as `measure` does, and keep nothing of them."""
    passes = Passes(loaded, entry, plan, Bystander(plan.run))
    for batch in batches_left(plan, samples_done):
        for _ in passes(batch):
            pass


class Bystander(Collector):
    """Lets hidden states pass; those of the writing process are the same."""

    def __call__(self, layer: int, hidden_state: Tensor) -> None:
        """Nothing is taken."""

    def close(self) -> CollectedBatch:
        """The batch, which has no rows."""
        return self._batch
