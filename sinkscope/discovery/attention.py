"""The link between massive tokens and attention: which tokens are attention sinks, and how well a score finds them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sinkscope.discovery.settings import DiscoverySettings
from sinkscope.significance import Floats
from sinkscope.store.layout import ATTENTION_MEASURED
from sinkscope.store.reader import RunReader

FEWEST_LATER_QUERIES = 8
"""The mean over fewer queries says nothing, however short the sample."""


@dataclass(frozen=True)
class AttentionLink:
    """Attention drawn by the tokens that can be judged.

    Attributes
    ----------
    token : int64 [A]
        Rows of the token table.
    drawn : float64 [A, L]
        Mean attention from later queries. NaN where a layer has no softmax attention.
    value_norm : float64 [A, L]
    sink : bool [A, L]
        Whether the token is an attention sink.
    """

    token: NDArray[np.int64]
    drawn: Floats
    value_norm: Floats
    sink: NDArray[np.bool_]

    @property
    def num_layers(self) -> int:
        return int(self.drawn.shape[1])

    @property
    def attended(self) -> NDArray[np.int64] | None:
        """The layers that hold softmax attention, where some do not; else None."""
        layers = np.flatnonzero([self.measured(layer) for layer in range(self.num_layers)])
        return layers if len(layers) < self.num_layers else None

    def measured(self, layer: int) -> bool:
        """Whether attention of this layer was measured."""
        return layer < self.num_layers and not bool(np.isnan(self.drawn[:, layer]).all())


def attended_layers(run: RunReader, link: AttentionLink | None) -> NDArray[np.int64] | None:
    """The layers that hold softmax attention, where some do not; else None. Where nothing was measured, as the run says
    of the model."""
    if link is not None:
        return link.attended
    known = run.attributes.settings.get("attention_layers")
    return np.array(known, np.int64) if known and len(known) < run.attributes.num_layers else None


def least_later_queries(run: RunReader, token: NDArray[np.int64], settings: DiscoverySettings) -> NDArray[np.int64]:
    """How many later queries the tokens [A] need to be judged, int64 [A]: fewer in short samples, half of their length,
    so that these can be judged at all."""
    length = np.bincount(run.tokens.sample)[run.tokens.sample[token]]
    return np.minimum(settings.minimum_later_queries, np.maximum(length // 2, FEWEST_LATER_QUERIES))


def read_link(run: RunReader, settings: DiscoverySettings) -> tuple[AttentionLink | None, str | None]:
    """The attention of a run, or None with the reason why there is none to go by."""
    table = run.attention
    if table is None or not len(table.token):
        said = run.attributes.attention
        return None, said if said != ATTENTION_MEASURED else "there were no tokens to measure it on; give longer texts"
    judged = table.later_queries >= least_later_queries(run, table.token, settings)
    if judged.sum() < settings.least_judged:
        return None, (
            f"only {int(judged.sum())} tokens have enough later queries ({settings.minimum_later_queries}, or half of "
            "their text where that is shorter); give longer texts"
        )
    drawn = table.drawn[judged].astype(np.float64)
    with np.errstate(invalid="ignore"):
        sink = drawn > settings.attention_sink
    return (
        AttentionLink(
            table.token[judged],
            drawn,
            table.value_norm[judged].astype(np.float64),
            sink,
        ),
        None,
    )
