"""What VAR knows about the tokens of one key-value cache: which are visual, which are sinks, in which layer.

Sequence        one per cache (per `generate` call); per sample, never shared between samples
  roles[layer]  [B, 4, capacity]: for every cached token 1 or 0 in each of
                (visual sink, visual non-sink, receiver, donor)
Step            one forward pass: the tokens that it adds
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from sinkscope.redistribution.edit import token_parts
from sinkscope.redistribution.equations import VarConfig, roles

Queries = Literal["text", "generated", "all"]
"""Rows that may be edited after the first visual token: all but visual ones, those of generated tokens, or all."""
CAPACITY_STEP = 256
NEVER = torch.iinfo(torch.long).max


@dataclass
class Step:
    """One forward pass.

    Attributes
    ----------
    offset, count : int
        Number of tokens in the cache before it, and of tokens that it adds.
    queries : BoolTensor [B, T]
        Rows that may be edited.
    rows : LongTensor [q] or None
        Rows that may be edited in some sample. None for a single generated token.
    pairs : int
        Number of (sample, row) pairs that may be edited.
    visual, valid : BoolTensor [B, T] or None
        Visual tokens of the pass, and tokens that are not padding. None for a single generated token, which is neither.
    """

    offset: int
    count: int
    queries: Tensor
    rows: Tensor | None
    pairs: int
    visual: Tensor | None = None
    valid: Tensor | None = None


@dataclass
class Sequence:
    """The tokens in one cache.

    Attributes
    ----------
    batch : int
        Number of samples.
    length : int
        Number of tokens known.
    first_visual : LongTensor [B]
        Position of the first visual token; `NEVER` where there was none so far.
    with_image : BoolTensor [B, 1]
        Whether the sample had a visual token: whether its generated tokens are queries.
    samples_with_image : int
        Their number, known on the host.
    tables : dict of int to Tensor [B, 4, capacity]
        Per layer, float32 because they are factors of matrix products; zero beyond `length`.
    donors : dict of int to bool
        Whether the layer holds a donor.
    """

    batch: int
    first_visual: Tensor
    with_image: Tensor
    length: int = 0
    samples_with_image: int = 0
    tables: dict[int, Tensor] = field(default_factory=dict)
    donors: dict[int, bool] = field(default_factory=dict)

    @classmethod
    def empty(cls, batch: int, device: torch.device) -> "Sequence":
        """No tokens yet, for `batch` samples."""
        return cls(
            batch,
            torch.full((batch,), NEVER, device=device),
            torch.zeros(batch, 1, dtype=torch.bool, device=device),
        )

    def one_token(self, *, edited: bool) -> Step:
        """The pass of one token per sample that is not visual. Nothing is computed or read back from the device."""
        return Step(self.length, 1, self.with_image, None, self.samples_with_image if edited else 0)

    def several_tokens(self, visual: Tensor, valid: Tensor, *, visual_too: bool = False, start: int = 0) -> Step:
        """The pass of a prompt, of a part of one, or of several generated tokens.

        Parameters
        ----------
        visual, valid : BoolTensor [B, T]
            Visual tokens, and tokens that are not padding.
        visual_too : bool
            Whether visual tokens after the first may be edited too.
        start : int
            Rows before this position are left alone.
        """
        count = valid.shape[1]
        visual = visual & valid
        positions = torch.arange(self.length, self.length + count, device=valid.device)
        first = torch.minimum(self.first_visual, torch.where(visual, positions, NEVER).amin(1))
        self._set_first_visual(first)
        queries = (positions > first[:, None]) & (positions >= start) & valid
        if not visual_too:
            queries &= ~visual
        rows = queries.any(0).nonzero()[:, 0]
        return Step(self.length, count, queries, rows, int(queries.sum()), visual, valid)

    def record(self, layer: int, sinks: Tensor, step: Step, config: VarConfig) -> tuple[int, int] | None:
        """Write the parts of the step's tokens in `layer`.

        Parameters
        ----------
        sinks : BoolTensor [B, T]
            Sink tokens among the step's.

        Returns
        -------
        (int, int) or None
            Number of sink tokens and of visual ones among them; None for one generated token, where reading the number
            back could wait for a device. The layer is taken to hold a donor from then on.
        """
        stop = step.offset + step.count
        table = self._table(layer, stop, sinks.device)
        sinks = sinks.to(table.device)
        if step.visual is None or step.valid is None:
            self._write_generated(layer, table[..., step.offset], sinks[:, 0], config)
            return None
        visual, valid = step.visual.to(table.device), step.valid.to(table.device)
        sinks = sinks & valid
        give, receive = roles(sinks, visual, valid, config.donors, config.receivers)
        table[:, :, step.offset : stop] = token_parts(sinks, visual, give, receive, config)
        all_sinks, visual_sinks, donors = torch.stack([sinks.sum(), (visual & sinks).sum(), give.sum()]).tolist()
        self.donors[layer] = bool(donors) or self.donors.get(layer, False)
        return all_sinks, visual_sinks

    def record_generated(self, layer: int, sinks: list[bool], step: Step, config: VarConfig) -> tuple[int, int]:
        """`record` for one generated token per sample, where it is known on the host which of them are sinks."""
        # A token that neither gives nor receives is a column of zeros, which is what is there.
        if any(sinks) or config.receivers != "visual":
            device = self.with_image.device
            parts = self._table(layer, step.offset + 1, device)[..., step.offset]
            self._write_generated(layer, parts, torch.tensor(sinks, device=parts.device), config)
        return sum(sinks), 0

    def _write_generated(self, layer: int, parts: Tensor, sinks: Tensor, config: VarConfig) -> None:
        """The parts of one token per sample, neither visual nor padding: sinks, BoolTensor [B]; parts, zeros [B, 4]."""
        if config.receivers != "visual":
            parts[:, 2] = ~sinks
        if config.donors == "all":
            parts[:, 3] = sinks * -config.p
            self.donors[layer] = True

    def table(self, layer: int, columns: int, length: int, device: torch.device) -> Tensor:
        """Parts of the keys that the layer's attention sees, Tensor [B, 4, K].

        Parameters
        ----------
        columns : int
            Number of keys K. Fewer than `length` in a sliding window, which keeps the last ones; more in a static
            cache, whose tail is empty.
        length : int
            Number of tokens cached, the step's included.
        """
        start = max(length - columns, 0)
        table = self._table(layer, start + columns, device)
        if table.device != device:
            table = self.tables[layer] = table.to(device)
        keys = table.narrow(2, start, columns)
        # The backward pass wants it as it is now; later passes write into it.
        return keys.clone() if torch.is_grad_enabled() else keys

    def _table(self, layer: int, size: int, device: torch.device) -> Tensor:
        table = self.tables.get(layer)
        if table is None or table.shape[2] < size:
            capacity = -(-size // CAPACITY_STEP) * CAPACITY_STEP
            # Usable outside inference mode as well, if the cache is kept.
            with torch.inference_mode(False):
                larger = torch.zeros(self.batch, 4, capacity, device=device if table is None else table.device)
            if table is not None:
                larger[:, :, : table.shape[2]] = table
            table = self.tables[layer] = larger
        return table

    def _set_first_visual(self, first: Tensor) -> None:
        self.first_visual = first
        self.with_image = (first != NEVER)[:, None]
        self.samples_with_image = int(self.with_image.sum())

    def truncate(self, length: int) -> None:
        """Forget the tokens from `length` on, as a cropped cache does (assisted decoding)."""
        for table in self.tables.values():
            table[:, :, length:] = 0
        self.length = length
        self._set_first_visual(torch.where(self.first_visual < length, self.first_visual, NEVER))

    def select(self, samples: Tensor) -> None:
        """Reorder, repeat or drop samples as the cache does (beam search). samples: LongTensor [new B]."""
        self.batch = len(samples)
        self.tables = {layer: table[samples.to(table.device)] for layer, table in self.tables.items()}
        self._set_first_visual(self.first_visual[samples.to(self.first_visual.device)])

    def copy(self) -> "Sequence":
        """An independent copy, for a copied cache."""
        tables = {layer: table.clone() for layer, table in self.tables.items()}
        return Sequence(
            self.batch,
            self.first_visual,
            self.with_image,
            self.length,
            self.samples_with_image,
            tables,
            dict(self.donors),
        )
