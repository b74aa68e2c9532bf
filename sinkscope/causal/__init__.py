"""The causal check: what happens to a sink when its dimensions' values are exchanged with those of others."""

from sinkscope.causal.check import causal_check
from sinkscope.causal.settings import CausalSettings

__all__ = ["CausalSettings", "causal_check"]
