"""The encoded samples of a run: read one by one, so that memory does not grow with their tokens."""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, cast, overload

import numpy as np
from numpy.typing import NDArray

from sinkscope.capture.encode import EncodedSample
from sinkscope.store.layout import KIND_VISUAL
from sinkscope.store.spool import Spool
from sinkscope.store.tokens import TokenTable


@dataclass(frozen=True)
class EncodedSamples(Sequence[EncodedSample]):
    """Encoded samples in their order.

    Attributes
    ----------
    tokens : TokenTable
        Of all of them; long columns lie on the disk.
    fingerprints : uint64 [samples]
    visual : bool [samples]
        Which hold visual tokens.
    pictures : mapping of int to EncodedSample
        The samples with pictures, by number, their tokens left out.
    """

    tokens: TokenTable
    fingerprints: NDArray[np.uint64]
    visual: NDArray[np.bool_]
    pictures: Mapping[int, EncodedSample]

    @classmethod
    def gather(cls, samples: Iterable[EncodedSample], fingerprints: Sequence[int] | None = None) -> Self:
        """Take samples one by one; their fingerprints where they are known.

        Raises
        ------
        DiskError
            If their tokens are many, and there is no room for temporary files.
        """
        id, kind = Spool(np.int32), Spool(np.uint8)
        lengths, contents, visual = array("i"), array("Q"), array("b")
        pictures: dict[int, EncodedSample] = {}
        for number, sample in enumerate(samples):
            id.append(sample.ids)
            kind.append(sample.kinds)
            lengths.append(len(sample))
            contents.append(sample.fingerprint() if fingerprints is None else fingerprints[number])
            visual.append(KIND_VISUAL in sample.kinds)
            if sample.has_images:
                pictures[number] = replace(sample, ids=sample.ids[:0], kinds=sample.kinds[:0])
        return cls(
            TokenTable(cast(Any, id), cast(Any, kind), np.array(lengths, np.int32)),
            np.array(contents, np.uint64),
            np.array(visual, bool),
            pictures,
        )

    def take(self, numbers: Sequence[int]) -> Self:
        """Some of the samples, numbered anew in the order given."""
        if list(numbers) == list(range(len(self))):
            return self
        return type(self).gather((self[number] for number in numbers), self.fingerprints[list(numbers)].tolist())

    def __len__(self) -> int:
        return len(self.fingerprints)

    @overload
    def __getitem__(self, number: int) -> EncodedSample: ...
    @overload
    def __getitem__(self, number: slice) -> list[EncodedSample]: ...
    def __getitem__(self, number: int | slice) -> EncodedSample | list[EncodedSample]:
        if isinstance(number, slice):
            return [self[place] for place in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        rows = slice(*self.tokens.edges[number : number + 2].tolist())
        ids, kinds = self.tokens.id[rows], self.tokens.kind[rows]
        picture = self.pictures.get(number)
        return EncodedSample(ids, kinds) if picture is None else replace(picture, ids=ids, kinds=kinds)
