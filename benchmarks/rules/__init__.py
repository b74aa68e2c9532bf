"""The published rules for sink dimensions and sink tokens, re-implemented from their definitions.

They are the yardstick of the benchmarks and take no part in sinkscope. Each follows its paper or its code; where those
leave something open, the docstring says what was chosen. Layers are counted as everywhere in sinkscope: state l enters
layer l, state L leaves the last one, so what the originals call the output of layer i is state i + 1.

Sources
-------
Sun et al., "Massive Activations in Large Language Models", COLM 2024 (arXiv 2402.17762), locuslab/massive-activations;
the search for dimensions as in bluorion-com/refine_massive_activations (arXiv 2503.22329).
Kang et al., "See What You Are Told: Visual Attention Sink in Large Multimodal Models", ICLR 2025 (arXiv 2503.03321),
seilk/VisAttnSink.
Heretic pull request 154 (p-e-w/heretic).
Attention-first finder: Bostoncake/VisAttnSink, find_sink_dimensions_simple.py.
LTPO: Bostoncake/LTPO, calibrate_outlier_dims.py.
Omni finder: a public sink analysis of Qwen2.5-Omni (stages 0.1 and 1.3: 20x median, then distinctiveness).
PrefixQuant: ChenMnZ/PrefixQuant, utils/stat_utils.py (arXiv 2410.05265).
Gu et al., "When Attention Sink Emerges in Language Models", ICLR 2025 (arXiv 2410.10781), sail-sg/Attention-Sink.
"""

from benchmarks.rules.activations import Activations, Rule, phi_tokens
from benchmarks.rules.by_population import attention_first_dims, gu_tokens, ltpo_dims, omni_dims
from benchmarks.rules.by_size import (
    heretic_dims,
    heretic_tokens,
    kang_dims,
    prefix_tokens,
    sun_dims,
    sun_tokens,
)

__all__ = ["RULES", "Activations", "Rule", "phi_tokens"]

RULES: tuple[Rule, ...] = (
    Rule(
        "Sun 100 / 1000x",
        "arXiv 2402.17762",
        "A magnitude above 100 and at least 1000 times the median magnitude of the hidden state.",
        sun_dims,
        sun_tokens,
    ),
    Rule(
        "Kang phi >= 20",
        "arXiv 2503.03321",
        "abs(x[d]) / RMS(x) >= 20 in any dimension, where no dimensions are given.",
        kang_dims,
        phi_tokens,
    ),
    Rule(
        "heretic",
        "p-e-w/heretic pull request 154",
        "Above 100, above 1000 medians and 1000 median deviations of its token, in a top cluster of at most 3, in a "
        "quarter of the layers.",
        heretic_dims,
        heretic_tokens,
    ),
    Rule(
        "attention-first",
        "Bostoncake/VisAttnSink",
        "The 2 dimensions largest, in most layers, on the tenth of the (visual) tokens that draws the most attention.",
        attention_first_dims,
        phi_tokens,
        needs_attention=True,
    ),
    Rule(
        "LTPO median",
        "Bostoncake/LTPO",
        "The 2 dimensions with the largest median over tokens of abs(x) / RMS(x) at the middle layer.",
        ltpo_dims,
        phi_tokens,
    ),
    Rule(
        "Omni 20x median",
        "a public sink analysis of Qwen2.5-Omni",
        "Mean of abs(x) / RMS(x) above 20 medians in most layers, and larger on tokens with phi >= 20 than on others.",
        omni_dims,
        phi_tokens,
    ),
    Rule(
        "PrefixQuant",
        "arXiv 2410.05265",
        "A token whose largest magnitude is above 64 times the median token's.",
        None,
        prefix_tokens,
    ),
    Rule(
        "Gu sink rate",
        "arXiv 2410.10781",
        "A token that draws more than 0.3 of the attention.",
        None,
        gu_tokens,
        needs_attention=True,
    ),
)
"""One entry for every published rule that finds dimensions or tokens."""
