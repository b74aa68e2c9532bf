"""The part of the document on stores whose sinks are known."""

from typing import Any

from benchmarks.document.words import NOTHING, braces, clean, folded, join, paragraph, percent, plural, table

OWN = "sinkscope"
FREE = "free: "
SHOWN_FAILURES = 12


def section(results: dict[str, Any], images: dict[str, str]) -> str:
    """The whole part.

    Parameters
    ----------
    results : dict
        Of ``discovery.json``.
    images : dict of str to str
        Markdown for the figures by name.
    """
    stores = results["stores"]
    free = sum(not row[3] for row in stores)
    separable = sum(bool(row[2]) for row in stores)
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = [
        "## Known truth",
        paragraph(
            f"`python -m benchmarks.discovery` built {plural(len(stores), 'store')} with planted sinks and decoys, "
            f"{free} of them without sinks, and let discovery and the rules find them. {separable} are *separable*: "
            "their sinks can be told from everything else by what the store holds. Exact means that the set of "
            "dimensions is exactly the planted one. Intervals are 95 % (Clopper-Pearson). It took "
            f"{results['seconds'] / 60:.0f} minutes; {versions}."
        ),
    ]
    parts += [images["strata"]] if "strata" in images else []
    parts += [
        "### Exact sets on separable stores",
        accuracy(results["accuracy"]["separable"]),
        behind(results["accuracy"]["separable"]),
        "All stores, separable or not:",
        accuracy({name: results["accuracy"]["all"].get(name) for name in ("", "sinks", "free")}),
        folded("Separable stores by single factors", factors(results["factors"])),
        "### False discoveries on stores without sinks",
        false_discovery(results["false_discovery"], results["settings"]["false_discovery_rate"]),
    ]
    if results.get("calibration"):
        parts += ["### Null p-values", calibration(results["calibration"])]
        parts += [images["p_values"]] if "p_values" in images else []
    parts += ["### Sink tokens", tokens(results["tokens"])]
    parts += ["### Stability and extent", stability(results)]
    if results.get("speed"):
        parts += ["### Speed", speed(results["speed"])]
    parts += ["### What it gets wrong", failures(results)]
    return "\n\n".join(part for part in parts if part)


def rate(entry: dict[str, Any] | None, interval: bool = False) -> str:
    """A rate in percent, with its interval if asked for."""
    if not entry or not entry["of"]:
        return NOTHING
    text = percent(entry["rate"], 1)
    if interval and entry.get("interval"):
        low, high = entry["interval"]
        text += f" [{percent(low, 1)}, {percent(high, 1)}]"
    return text


def title(stratum: str) -> str:
    """The name of a stratum as the tables show it."""
    return {"": "**all**", "sinks": "**with sinks**", "free": "**without sinks**"}.get(stratum, stratum)


def methods_of(by_stratum: dict[str, Any]) -> list[str]:
    """All methods, sinkscope first."""
    names = dict.fromkeys(name for entry in by_stratum.values() if entry for name in entry)
    return [OWN] + [name for name in names if name != OWN]


def accuracy(by_stratum: dict[str, Any]) -> str:
    """Exact-set accuracy, strata by methods."""
    methods = methods_of(by_stratum)
    rows = [
        [title(stratum), max((one["of"] for one in entry.values() if one), default=0)]
        + [rate(entry.get(name), interval=name == OWN) for name in methods]
        for stratum, entry in by_stratum.items()
        if entry
    ]
    return table(["stratum", "stores", *methods], rows)


def behind(by_stratum: dict[str, Any]) -> str:
    """Strata in which a rule is better, in words."""
    better = [
        f"{name} in {stratum or 'all stores'} ({rate(one)} against {rate(entry[OWN])})"
        for stratum, entry in by_stratum.items()
        for name, one in entry.items()
        if name != OWN and one and entry.get(OWN) and one["rate"] > entry[OWN]["rate"]
    ]
    if not better:
        return "No rule is better than sinkscope in any stratum."
    return paragraph(f"A rule is better in some strata: {'; '.join(better)}.")


def factors(by_factor: dict[str, Any]) -> str:
    """Accuracy by the values of single factors: sinkscope and the best rule."""
    rows = []
    for factor, by_value in by_factor.items():
        for value, entry in sorted(by_value.items(), key=lambda item: _order(item[0])):
            others = {name: one["rate"] for name, one in entry.items() if name != OWN and one and one["of"]}
            best = max(others, key=lambda name: others[name]) if others else None
            own = entry.get(OWN)
            if own:
                rows.append(
                    [
                        factor,
                        clean(str(value)) or NOTHING,
                        own["of"],
                        rate(own),
                        f"{percent(others[best], 1)} ({best})" if best else NOTHING,
                    ]
                )
    return table(["factor", "value", "stores", OWN, "best rule"], rows, left=2)


def _order(value: str) -> tuple[float, str]:
    digits = value.split("-")[0].lstrip("t")
    return (float(digits), value) if digits.replace(".", "", 1).isdigit() else (float("inf"), value)


def false_discovery(entry: dict[str, Any], quantile: float) -> str:
    """Sink-free stores with a dimension."""
    methods = [name for name in entry if name not in ("by_stratum", "dimensions")]
    rows = [[name, f"{entry[name]['hits']} of {entry[name]['of']}", rate(entry[name], True)] for name in methods]
    dims = entry["dimensions"]
    wrong = [
        f"{name.removeprefix(FREE)} ({one['hits']} of {one['of']})"
        for name, one in entry["by_stratum"].items()
        if one["hits"]
    ]
    text = f"The stated rate is {percent(quantile, 1)}. " + (
        f"Of the {dims['of']} dimensions that sinkscope named in all stores {dims['hits']} are false ({rate(dims)}). "
    )
    text += f"Sink-free stores with a dimension: {', '.join(wrong)}." if wrong else "No sink-free stratum has any."
    return table(["method", "sink-free stores with a dimension", "rate"], rows) + "\n\n" + paragraph(text)


def tokens(entry: dict[str, Any]) -> str:
    """Errors on sink tokens."""
    rows = [
        [
            name,
            f"{one['sinks']:,}",
            f"{one['tokens']:,}",
            f"{one['missed']:,}",
            f"{one['false']:,}",
            percent(one["error"], 3),
            f"{one['f1']:.4f}",
            f"{one['outside_false']:,} of {one['outside']:,}",
        ]
        for name, one in entry.items()
    ]
    header = ["method", "sinks", "tokens", "missed", "false", "error", "F1", "flagged in layers without sinks"]
    text = "Separable stores with sinks, tokens counted once a layer, in the layers that have sink tokens."
    return text + "\n\n" + table(header, rows)


def stability(results: dict[str, Any]) -> str:
    """Bootstraps, and where bands begin and end."""
    steady, extent = results["stability"], results["extent"]
    return paragraph(
        f"In {steady['hits']} of {steady['of']} separable stores with sinks ({rate(steady, True)}) at least 95 % of "
        f"the bootstraps find every dimension. Bands and truth disagree in {extent['hits']} layers, for {extent['of']} "
        f"in which sink dimensions act ({rate(extent)})."
    )


def calibration(entry: dict[str, Any]) -> str:
    """Observed against nominal levels of null p-values."""
    levels = entry["levels"]
    groups = [*entry["groups"], {"width": "**all**", "tail": ""} | entry["all"]]
    rows = [
        [
            group["width"],
            group["tail"],
            group["stores"],
            f"{group['p_values']:,}",
            *(f"{ratio:.2f} ({count:,})" for ratio, count in zip(group["ratio"], group["observed"], strict=True)),
            f"{group['families']} of {group['stores']}",
        ]
        for group in groups
    ]
    above = [
        level
        for level, ratio in zip(levels, entry["all"]["ratio"], strict=True)
        if ratio > 1 and level * entry["all"]["p_values"] >= 1
    ]
    verdict = (
        "Over all groups no level is exceeded more often than its name says."
        if not above
        else f"Over all groups p-values fall below {join([f'{one:g}' for one in above])} more often than they should."
    )
    text = paragraph(
        "p-values of ordinary dimensions, on stores without sinks and without decoys. In each column the observed rate "
        "over the nominal level, and how many p-values are at or below it: a ratio above 1 means that the p-values are "
        "too small there, below 1 that they are conservative. The last column counts the stores in which any dimension "
        f"passes after the adjustment. {verdict}"
    )
    header = ["width", "tail", "stores", "p-values", *(f"{level:g}" for level in levels), "stores with a false one"]
    return text + "\n\n" + table(header, rows, left=2)


def speed(entry: dict[str, Any]) -> str:
    """The large run file."""
    return paragraph(
        f"Discovery on a run file of {entry['layers']} layers, {entry['width']} dimensions and {entry['tokens']:,} "
        f"tokens ({entry['file_gib']:.2f} GiB) took {entry['seconds']:.1f} s and {entry['peak_gib']:.2f} GiB at its "
        f"peak, the whole process counted. It found {braces(entry['dims'])}."
    )


def failures(results: dict[str, Any]) -> str:
    """Stores with a wrong set."""
    parts = []
    for name, words in (("failures", "separable"), ("unseparable", "not separable")):
        wrong = results[name]
        if not wrong:
            parts.append(f"No store that is {words} gets a wrong set.")
            continue
        shown = wrong[:SHOWN_FAILURES]
        more = f" (the first {len(shown)})" if len(wrong) > len(shown) else ""
        rows = [
            [
                entry["factors"]["stratum"],
                entry["factors"]["seed"],
                entry["factors"]["width"],
                braces(sorted(entry["truth"])),
                braces(sorted(entry["found"])),
                clean(entry["reason"]),
            ]
            for entry in shown
        ]
        parts += [
            f"{plural(len(wrong), 'store')} that {'is' if len(wrong) == 1 else 'are'} {words}{more}:",
            table(["stratum", "seed", "width", "planted", "found", "reason given"], rows, left=6),
        ]
    return "\n\n".join(parts)
