"""A profile for the terminal: what was found, how sure it is, what was rejected and why."""

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sinkscope.profile import Band, Profile, RejectedDimension, SinkDimension, Tau
from sinkscope.report.causal import causal_sentences, causal_table
from sinkscope.report.rows import Rows
from sinkscope.report.style import clean, format_number, shorten

VERDICT_STYLES = {"sinks": "bold green", "none": "bold cyan", "uncertain": "bold yellow"}
VERDICT_WORDS = {"sinks": "has sinks", "none": "has no sinks", "uncertain": "uncertain"}
QUALITY_STYLES = {"separated": "green", "overlapping": "yellow", "unknown": "dim"}
MAXIMUM_REJECTED = 6
MAXIMUM_FACTS = 12


def profile_summary(profile: Profile) -> RenderableType:
    """A readable summary of a profile, to be printed by rich.

    What a profile does not know is left out rather than shown empty. Text from the profile is shown without its control
    characters and never read as markup.
    """
    parts: list[RenderableType] = [_heading(profile), Text(clean(profile.reason)), Text("")]
    if profile.sink_dimensions:
        parts += [_section("Sink dimensions"), _indented(_dimension_table(profile))]
    if profile.tau is not None:
        parts += [_section("Threshold"), _indented(_tau_line(profile.tau))]
    if profile.bands:
        parts += [_section("Layer bands"), _indented(_band_table(profile.bands))]
    rejected = [
        _rejected_line(word, entries)
        for word, entries in (
            ("companion", profile.companion_dimensions),
            ("all-token outlier", profile.all_token_outliers),
            ("content", profile.content_dimensions),
        )
        if entries
    ]
    if rejected:
        parts += [_section("Looked at and not counted"), *map(_indented, rejected)]
    evidence = _attention_facts(profile.evidence.attention or {})
    notes = profile.evidence.notes
    unknown = profile.provenance.kind == "measured" and profile.evidence.attention is None
    if unknown and not any(text.startswith("attention: ") for text in notes):
        evidence.append("attention was not measured: the link from dimension to attention was not asked for")
    if profile.evidence.weights is not None:
        said = profile.evidence.weights.get("sentence") or profile.evidence.weights.get("unavailable")
        evidence.append(f"by the weights: {clean(str(said))}")
        notes = [text for text in notes if text != f"weights: {said}"]  # Where they disagree, a note says so, too.
    if evidence or notes:
        parts += [_section("Evidence and notes")]
        parts += [_indented(_bullet(text)) for text in [*evidence, *notes]]
    if profile.evidence.causal is not None:
        table = causal_table(profile.evidence.causal)
        parts += [_section("Causal check"), *([] if table is None else [_indented(table)])]
        parts += [_indented(_bullet(text)) for text in causal_sentences(profile.evidence.causal)]
    parts += [
        _section("VAR defaults"),
        _indented(_var_line(profile)),
        _section("Where from"),
        _indented(_source(profile)),
    ]
    return Group(*parts)


def _heading(profile: Profile) -> Text:
    backbone = profile.backbone
    heading = Text.assemble(
        (clean(profile.name), "bold"), "  ", (VERDICT_WORDS[profile.verdict], VERDICT_STYLES[profile.verdict])
    )
    shape = f"   {clean(backbone.model_type)}, {backbone.num_layers} layers of width {backbone.hidden_size:,}"
    heading.append(shape, "dim")
    return heading


def _section(title: str) -> Text:
    return Text(title, style="bold underline")


def _indented(part: RenderableType) -> Padding:
    return Padding(part, (0, 0, 0, 2))


def _bullet(text: str) -> Table:
    """A table of two columns, so that wrapped lines hang below the text and not below the bullet."""
    table = Table.grid(padding=(0, 1))
    table.add_row(Text("•", style="dim"), Text(clean(text)))
    return table


def _dimension_table(profile: Profile) -> Rows:
    columns: dict[str, Callable[[SinkDimension], str | None]] = {
        "dim": lambda entry: str(entry.dim),
        "layers": lambda entry: _layers(entry.first_layer, entry.last_layer),
        "typical value": lambda entry: _value(entry),
        "phi": lambda entry: _known(entry.phi, "{:.1f}"),
        "energy": lambda entry: _known(entry.energy_share, "{:.1%}"),
        "contrast": lambda entry: None if entry.contrast is None else f"{format_number(entry.contrast)}x",
        "attention": lambda entry: _known(entry.attention_drawn, "{:.0%}"),
        "p": lambda entry: _known(entry.p_value, "{:.1g}"),
        "stability": lambda entry: _known(entry.stability, "{:.0%}"),
        "on": lambda entry: clean(", ".join(repr(text) if not text.isalnum() else text for text in entry.triggers)),
    }
    known = {
        title: [column(entry) or "" for entry in profile.sink_dimensions]
        for title, column in columns.items()
        if any(column(entry) for entry in profile.sink_dimensions)
    }
    cells = [[Text(cell) for cell in row] for row in zip(*known.values(), strict=True)]
    for row in cells:
        row[0].stylize("bold")
    return Rows(list(known), cells, wrapping=["on"])


def _band_table(bands: list[Band]) -> Rows:
    titles = ["layers", "dims"]
    phi = any(band.tau_phi is not None for band in bands)
    calibrated = any(band.tau_score is not None for band in bands)
    judged = any(band.quality != "unknown" for band in bands)
    titles += ["tau (phi)"] * phi + ["tau (score)"] * calibrated + ["populations"] * judged
    rows = []
    for band in bands:
        cells = [Text(_layers(band.first_layer, band.last_layer) or ""), Text(", ".join(map(str, band.dims)))]
        if phi:
            cells.append(Text(_threshold(band.tau_phi, band.tau_phi_interval)))
        if calibrated:
            cells.append(Text(_threshold(band.tau_score, band.tau_score_interval)))
        if judged:
            cells.append(Text(band.quality, style=QUALITY_STYLES[band.quality]))
        rows.append(cells)
    return Rows(titles, rows, left=["populations"])


def _tau_line(tau: Tau) -> Text:
    line = Text(f"phi {_threshold(tau.phi, tau.phi_interval)}" if tau.phi is not None else "no tau on phi is known")
    if tau.energy_share is not None:
        line.append(f", energy share {tau.energy_share:.2f}")
    if tau.quality != "unknown":
        line.append(f"; populations {tau.quality}", QUALITY_STYLES[tau.quality])
    return line


def _threshold(value: float | None, interval: tuple[float, float] | None) -> str:
    """Four digits, because an interval near phi's ceiling is narrow."""
    if value is None:
        return ""
    safe = f" (safe {interval[0]:.4g} to {interval[1]:.4g})" if interval is not None else ""
    return f"{value:.4g}{safe}"


def _rejected_line(word: str, entries: list[RejectedDimension]) -> Text:
    line = Text.assemble((f"{word}: ", "dim"))
    shown = []
    for entry in entries[:MAXIMUM_REJECTED]:
        details = [clean(entry.reason)] if entry.reason else []
        layers = _layers(entry.first_layer, entry.last_layer)
        details += [f"layers {layers}"] if layers else []
        shown.append(f"{entry.dim} ({'; '.join(details)})" if details else str(entry.dim))
    if len(entries) > MAXIMUM_REJECTED:
        shown.append(f"{len(entries) - MAXIMUM_REJECTED} more")
    return line.append(", ".join(shown))


def _attention_facts(attention: Mapping[str, Any]) -> list[str]:
    """What the evidence on attention says, the figures that discovery writes as sentences."""
    rest, lines = dict(attention), []
    names = ("mean_drawn_by_flagged", "mean_drawn_by_others")
    if all(isinstance(rest.get(name), float) for name in names):
        sinks, others = (rest.pop(name) for name in names)
        lines.append(f"a sink token draws {sinks:.0%} of the attention, any other {others:.1%}")
    figures = ("threshold", "mean_f1", "mean_average_precision")
    if all(isinstance(rest.get(name), float) for name in figures):
        level, f1, precision = (rest.pop(name) for name in figures)
        lines.append(
            f"tau finds the tokens that draw over {level:.0%} of the attention with F1 {f1:.2f} (average precision "
            f"{precision:.2f}), mean over the layers"
        )
        tokens, queries = rest.pop("tokens", None), rest.pop("minimum_later_queries", None)
        if isinstance(tokens, int) and isinstance(queries, int):
            lines.append(f"judged on {tokens:,} tokens with {queries} more, or half of their text, after them")
    return lines + _facts(rest)


def _facts(values: Mapping[str, Any]) -> list[str]:
    """The plain numbers and words of an object, one each."""
    lines = []
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            continue
        shown = format_number(value) if isinstance(value, float) else str(value)
        if " " not in shown:  # A fingerprint or a path says enough with its beginning.
            shown = shorten(shown, 24)
        lines.append(f"{key.replace('_', ' ')}: {shown}")
    return lines[:MAXIMUM_FACTS]


def _var_line(profile: Profile) -> Text:
    var = profile.var
    line = f"p {var.p:g}, rho {var.rho:g}, attention floor {var.attention_floor:g}"
    if var.excluded_layers:
        line += f", layers left alone: {', '.join(map(str, var.excluded_layers))}"
    return Text(line)


def _source(profile: Profile) -> Group:
    provenance = profile.provenance
    first = ", ".join(clean(part) for part in (provenance.kind, provenance.date, provenance.revision) if part)
    lines = [Text(first)]
    if provenance.source:
        lines.append(Text(clean(provenance.source)))
    # A run's samples are what texts were cut into, and pictures; those that were given are fewer.
    told = {"pieces" if key == "samples" else key: value for key, value in (provenance.calibration or {}).items()}
    calibration = _facts(told)
    if calibration:
        lines.append(Text(clean("calibration: " + ", ".join(calibration)), style="dim"))
    if profile.models:
        lines.append(Text(clean("fits: " + ", ".join(profile.models)), style="dim"))
    return Group(*lines)


def _layers(first: int | None, last: int | None) -> str | None:
    if first is None and last is None:
        return None
    if last is None:
        return f"from {first}"
    if first is None:
        return f"to {last}"
    return f"{first}–{last}" if last > first else str(first)


def _value(entry: SinkDimension) -> str | None:
    if entry.typical_value is not None:
        sign = "+" if entry.typical_value > 0 else "−" if entry.typical_value < 0 else ""
        return f"{sign}{abs(entry.typical_value):,.{0 if abs(entry.typical_value) >= 100 else 1}f}"
    return {1: "positive", -1: "negative"}.get(entry.sign or 0)


def _known(value: float | None, form: str) -> str | None:
    return None if value is None else form.format(value)
