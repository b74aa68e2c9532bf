"""What VAR did, per layer, collected without waiting for the device."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from sinkscope.redistribution.edit import Moved

PENDING_LIMIT = 512


@dataclass(frozen=True)
class LayerSummary:
    """One layer, over every forward pass since `attach`.

    Attributes
    ----------
    layer : int
        Decoder layer.
    sink_tokens, visual_sink_tokens : int
        Sink tokens seen, generated ones included, and the visual ones among them. Counted per forward pass that read
        them first: beams and repeated prompts count each.
    pairs : int
        (head, query) pairs that might have been edited: all heads of all text queries.
    image_centric_share : float
        Part of `pairs` that was edited, in [0, 1].
    recycled_attention : float
        Mean attention moved in an edited pair, in [0, 1].
    """

    layer: int
    sink_tokens: int
    visual_sink_tokens: int
    pairs: int
    image_centric_share: float
    recycled_attention: float

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)


class LayerStatistics:
    """Sums over the forward passes. Tensors wait in a list and are added up now and then, so a step costs nothing."""

    def __init__(self) -> None:
        self.sink_tokens = 0
        self.visual_sink_tokens = 0
        self.pairs = 0
        self._edited = 0
        self._recycled = 0.0
        self._moved: list[Moved] = []
        self._generated_sinks: list[Tensor] = []

    def count_sinks(self, sinks: int, visual: int) -> None:
        """Add the sink tokens of a pass, and the visual ones among them."""
        self.sink_tokens += sinks
        self.visual_sink_tokens += visual

    def count_sinks_later(self, sinks: Tensor) -> None:
        """Add the sink tokens of a pass without visual ones, BoolTensor, which may not be computed yet."""
        self._generated_sinks.append(sinks)
        if len(self._generated_sinks) > PENDING_LIMIT:
            self.fold()

    def add_moved(self, moved: list[Moved]) -> None:
        """Add what was moved in some rows."""
        for chosen, negative_omega in moved:
            self._moved.append((chosen, negative_omega.detach() if negative_omega.requires_grad else negative_omega))
        if len(self._moved) > PENDING_LIMIT:
            self.fold()

    def fold(self) -> None:
        """Add up what waits."""
        for chosen, negative_omega in self._moved:
            edited = chosen & (negative_omega < 0)
            self._edited += int(edited.sum())
            self._recycled -= float(negative_omega[edited].sum())
        self.sink_tokens += sum(int(sinks.sum()) for sinks in self._generated_sinks)
        self._moved.clear()
        self._generated_sinks.clear()

    def summary(self, layer: int) -> LayerSummary:
        """The figures so far."""
        self.fold()
        return LayerSummary(
            layer,
            self.sink_tokens,
            self.visual_sink_tokens,
            self.pairs,
            self._edited / self.pairs if self.pairs else 0.0,
            self._recycled / self._edited if self._edited else 0.0,
        )
