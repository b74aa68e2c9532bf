"""The causal check of a profile for the terminal: one line for each layer that was edited, and the verdicts."""

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from sinkscope.report.rows import Rows
from sinkscope.report.style import clean

COLUMNS = ("band", "layer", "dims", "drawn", "exchanged", "next largest", "random", "zero", "typical", "loss")


def causal_table(causal: Mapping[str, Any]) -> Rows | None:
    """How much of the attention that sink tokens draw each edit takes, in percent.

    "next largest" and "random" show the control that takes most; "loss" is what the exchange costs in nats. None where
    nothing was tested, or the entry is not as `sinkscope.causal` writes it: the schema leaves it free.
    """
    try:
        rows = [_row(band, layer) for band in causal["bands"] for layer in band["layers"]]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, StopIteration):
        return None
    return Rows(COLUMNS, rows) if rows else None


def causal_sentences(causal: Mapping[str, Any]) -> list[str]:
    """The verdict on the whole and on each band."""
    lines = [causal["sentence"]] if isinstance(causal.get("sentence"), str) else []
    bands = causal.get("bands")
    for band in bands if isinstance(bands, list) else []:
        sentences = band.get("sentences") if isinstance(band, Mapping) else None
        for text in sentences if isinstance(sentences, list) else []:
            lines.append(f"layers {band.get('first_layer')}–{band.get('last_layer')}: {text}")
    return lines


def _row(band: Mapping[str, Any], layer: Mapping[str, Any]) -> list[Text]:
    lines = layer["comparisons"]
    joint = next(line for line in lines if line["group"] == "found" and line["edit"] == "exchange")
    drawn = "" if joint["band"] is None else f"{joint['band']['before']:.0%}"
    single = ("exchange", "random"), ("exchange", "next largest"), ("zero", "found"), ("typical", "found")
    found = {key: [line for line in lines if (line["edit"], line["group"]) == key] for key in single}
    style = "green" if band["separates"] else "yellow"
    return [
        Text(f"{band['first_layer']:d}–{band['last_layer']:d}"),
        Text(f"{layer['layer']:d}"),
        Text(clean(", ".join(str(dim) for dim in band["dims"]))),
        Text(drawn),
        Text(_fall(joint, interval=True), style=style),
        Text(_most(found["exchange", "next largest"], names=True)),
        Text(_most(found["exchange", "random"])),
        Text(_most(found["zero", "found"])),
        Text(_most(found["typical", "found"])),
        Text("" if joint["loss_change"] is None else f"{joint['loss_change']:+.2f}"),
    ]


def _most(lines: list[Mapping[str, Any]], names: bool = False) -> str:
    """The line with the largest fall."""
    known = [line for line in lines if line["band"] is not None]
    if not known:
        return ""
    line = max(known, key=lambda entry: entry["band"]["fall"])
    return f"{clean('+'.join(str(dim) for dim in line['dims']))}: {_fall(line)}" if names else _fall(line)


def _fall(line: Mapping[str, Any], interval: bool = False) -> str:
    if line["band"] is None:
        return ""
    # A fall is shown as what is taken away, with a minus sign; attention that rises with a plus.
    text = _signed(line["band"]["fall"])
    if not interval:
        return text
    low, high = line["band"]["fall_interval"]
    return f"{text} ({_signed(low)} to {_signed(high)})"


def _signed(fall: float) -> str:
    percent = round(-100 * fall)
    return "0%" if percent == 0 else f"{percent:+d}%".replace("-", "−")
