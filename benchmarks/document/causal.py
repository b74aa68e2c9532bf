"""The causal check of real models, as tables and sentences."""

from typing import Any

from benchmarks.document.words import (
    NOTHING,
    between,
    braces,
    bullet,
    clean,
    extent,
    folded,
    number,
    paragraph,
    percent,
    table,
)

CAUSAL = (
    "On the sink tokens of a band, the values of the found dimensions are exchanged with those of ordinary ones: the "
    "norm and the set of values stay, only the place changes. *Fall* is the relative fall of the attention that the "
    "tokens draw from the edited layer to the end of the band, with its 95 % interval. It should be at least half for "
    "the found set, and less than a fifth for random and next-largest dimensions."
)


def causal_table(model: dict[str, Any]) -> str:
    """What the edits do, band by band."""
    check = model["causal"]
    parts = [paragraph(f"**{model['name']}**: {clean(check['sentence'])}.")]
    rows = []
    for band in check["bands"]:
        where = extent(band)
        for layer in band["layers"]:
            for line in layer["comparisons"]:
                effect = line["band"]
                fall = NOTHING
                if effect is not None and effect["fall"] is not None:
                    low, high = effect["fall_interval"]
                    fall = f"{percent(effect['fall'])} [{percent(low)}, {percent(high)}]"
                rows.append(
                    [
                        where,
                        layer["layer"],
                        f"{line['group']} {braces(line['dims']) if line['dims'] else '(' + str(line['count']) + ')'}",
                        line["edit"],
                        fall,
                        f"{number(line['loss_change'])} {between(line['loss_change_interval'])}".strip(),
                    ]
                )
    parts += [
        "\n".join(bullet(f"Layers {extent(band)}: {clean('; '.join(band['sentences']))}.") for band in check["bands"]),
        folded(
            "All edits",
            table(["band", "edited at", "dimensions", "edit", "fall", "change of loss (nats)"], rows, left=4),
        ),
    ]
    return "\n\n".join(parts)
