"""docs/helps.md and the printed tables, from the results of the benchmark alone. Pure functions, apart from `write`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.document.words import bullet, folded, join, number, paragraph, percent, plural, spans, table
from benchmarks.helps.settings import TARGET
from benchmarks.helps.statistics import OVERALL
from sinkscope.demo.pictures import QUESTION_TYPES

LEVEL = 0.05
KINDS = (*QUESTION_TYPES, OVERALL)
DIGITS = {"accuracy": 1, "loss": 4}

INTRODUCTION = """# Does VAR help on the demo model?

The demo model (`demo:lmm`, [demo_model.md](demo_model.md)) answers nearly every question about its own pictures, so
they cannot show whether [VAR](var.md) helps. Here it answers the same questions about harder pictures, with VAR off and
on. `python -m benchmarks.helps` measures it and writes this page from `benchmarks/results/helps.json`; nothing here is
typed by hand."""

METHOD = """## How it is measured

- One picture carries five questions, one of each type. Both settings answer the same ones, so all comparisons are
  paired.
- Accuracy is exact match of the greedy answer, its end included. Loss is the mean negative log-likelihood of the true
  answer's tokens, its end included, in nats. One teacher-forced pass gives both: greedy decoding gives the true answer
  exactly where each of its tokens is the most likely one after those before it. Tests compare this with `generate`,
  and batches with single pictures, VAR on and off.
- Intervals are 95 % bootstrap intervals that draw whole pictures. They are not widened for the number of cells. An
  interval of exactly 0 to 0 only says that no answer in the sample changed between right and wrong.
- p-values: McNemar's exact test for the accuracy of a type; random sign flips of whole pictures for everything else,
  10,000 of them, so 0.0001 is the least before correction. Holm's correction: over the cells of a table for all
  questions together, and over cells times types by type. "Shown" means below 0.05 after it.
- "Edited" is the share of (head, text row) pairs that VAR changed, over the layers it may edit; "moved" is the mean
  attention that went from sinks to receivers in such a pair. So a setting without effect can be told from one that
  never acts.
- The difficulty is chosen on one seed, the tables are from a second, and the best cell is measured again on a third."""

LIMITS = """## What this does not say

The demo model has 135 million parameters, 36 visual tokens, generated pictures, and sinks that come from how it was
aligned. Its visual sinks live in a few early layers. What fails on the harder pictures may be its small vision tower,
which was never trained on covers and strong noise, and no change of attention in the text model can mend that. So these
figures say nothing about models of 7B on photographs, neither for nor against VAR."""


def write(results: dict[str, Any], document: Path) -> Path:
    """Write the document."""
    parts = [
        INTRODUCTION,
        short(results),
        pictures(results),
        _grid(results),
        _types(results),
        _ablations(results),
        _section(
            "The best cell again, on fresh pictures",
            f"The cell with the highest accuracy of the grid was chosen among {len(results['grid'])}, so its figure "
            f"there is flattering. Here are {results['pictures']['fresh']} pictures that had no part in the choice.",
            results["fresh"],
        ),
        _control(results),
        METHOD,
        _run(results),
        LIMITS,
    ]
    document.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return document


def tables(results: dict[str, Any]) -> str:
    """What the command prints."""
    named = ("grid", "ablations", "fresh", "control")
    return "\n\n".join([short(results), *(f"{name}\n\n{cells(results[name])}" for name in named)])


def finding(entry: dict[str, Any], measure: str) -> str:
    """What a comparison shows of "accuracy" or "loss": better, worse or nothing, after Holm's correction."""
    if entry[f"{measure}_p_holm"] >= LEVEL:
        return "nothing shown"
    return "better" if (entry[f"{measure}_difference"] > 0) == (measure == "accuracy") else "worse"


def difference(entry: dict[str, Any], measure: str) -> str:
    """A difference with its interval: accuracy in percentage points, loss in nats."""
    low, high = entry[f"{measure}_interval"]
    return f"{_signed(entry[f'{measure}_difference'], measure)} [{_signed(low, measure)}, {_signed(high, measure)}]"


def _signed(value: float, measure: str) -> str:
    digits = DIGITS[measure]
    # Adding 0 turns a rounded -0.0 into 0.0.
    return f"{round(value * (100 if measure == 'accuracy' else 1), digits) + 0.0:+.{digits}f}"


def p_value(value: float) -> str:
    """A p-value in three digits, small ones as a bound."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def short(results: dict[str, Any]) -> str:
    """The findings in sentences that follow from the numbers."""
    grid = [cell["comparison"][OVERALL] for cell in results["grid"]]
    best, default = results["fresh"][0], results["default"]
    head, again = best["comparison"][OVERALL], results["fresh"][-1]["comparison"][OVERALL]
    chosen = next(cell for cell in results["grid"] if cell["name"] == best["name"])["comparison"][OVERALL]
    plain = grid[0]
    points = [
        f"Plain accuracy on the harder pictures is {percent(plain['accuracy_off'], 1)} "
        f"({plain['questions']:,} questions); without the picture it is {percent(results['blind']['all'], 1)}.",
        f"Accuracy: of the {len(grid)} cells of the grid, {_counts(grid, 'accuracy')}. The differences lie between "
        f"{_ends(grid, 'accuracy')} points.",
        f"Loss of the true answer: {_counts(grid, 'loss')}. The differences lie between {_ends(grid, 'loss')} nats, "
        f"where the plain loss is {plain['loss_off']:.3f}.",
        f"The most accurate cell, {best['name']}, has {difference(chosen, 'accuracy')} points in the grid. On fresh "
        f"pictures ({head['questions']:,} questions) it has {difference(head, 'accuracy')} points "
        f"({finding(head, 'accuracy')}) and a loss of {difference(head, 'loss')} ({finding(head, 'loss')}).",
        f"The profile's default (p {default['p']}, rho {default['rho']}), on the same fresh pictures: "
        f"{difference(again, 'accuracy')} points ({finding(again, 'accuracy')}), loss {difference(again, 'loss')} "
        f"({finding(again, 'loss')}).",
    ]
    return "\n\n".join(["## In short", paragraph(_verdict(results)), "\n".join(bullet(point) for point in points)])


def _verdict(results: dict[str, Any]) -> str:
    found = [finding(cell["comparison"][OVERALL], "accuracy") for cell in results["fresh"]]
    loss = [finding(cell["comparison"][OVERALL], "loss") for cell in results["fresh"]]
    if "better" in found and "worse" not in found:
        return "**VAR made answers more accurate here**, in the cells named below."
    if "worse" in found and "better" not in found:
        return "**VAR did not help here: it made answers less accurate.**"
    if "better" in found:
        return "**Mixed: VAR made answers more accurate in one cell and less in another.**"
    names = [cell["name"] for cell in results["fresh"]]
    likely = join([name for name, one in zip(names, loss, strict=True) if one == "better"])
    unlikely = join([name for name, one in zip(names, loss, strict=True) if one == "worse"])
    if "better" in loss and "worse" not in loss:
        return f"**No effect on accuracy is shown here.** The true answers became more likely with {likely}."
    if "worse" in loss and "better" not in loss:
        return (
            "**VAR did not help here.** No effect on accuracy is shown, and with "
            f"{unlikely} the true answers became less likely."
        )
    return "**No effect of VAR on accuracy is shown here**, for better or worse."


def _counts(entries: Sequence[dict[str, Any]], measure: str) -> str:
    found = [finding(entry, measure) for entry in entries]
    better, worse = found.count("better"), found.count("worse")
    rest = len(found) - better - worse
    return f"{better} are shown to be better, {worse} worse, and {rest} neither"


def _ends(entries: Sequence[dict[str, Any]], measure: str) -> str:
    values = [entry[f"{measure}_difference"] for entry in entries]
    return f"{_signed(min(values), measure)} and {_signed(max(values), measure)}"


def pictures(results: dict[str, Any]) -> str:
    """How the difficulty was chosen, and what the plain model answers."""
    rows = [
        [
            f"**{row['name']}**" if row["name"] == results["difficulty"] else row["name"],
            f"{row['noise']:.0f}",
            f"{row['radius'][0]}-{row['radius'][1]}",
            percent(row["hidden"]),
            row["scraps"],
            *(number(value, 2) for value in (*row["accuracy"], row["all"])),
        ]
        for row in results["difficulties"]
    ]
    header = ["difficulty", "noise", "radius", "covered up to", "scraps", *KINDS]
    first = results["grid"][0]["comparison"]
    seen = [
        ["VAR off", *(number(first[kind]["accuracy_off"]) for kind in KINDS)],
        ["VAR off, without the picture", *(map(number, (*results["blind"]["accuracy"], results["blind"]["all"])))],
        ["loss, VAR off", *(number(first[kind]["loss_off"]) for kind in KINDS)],
    ]
    text = (
        "Pixel noise, smaller objects, a muted bar over one side of every object, and muted scraps around them. Bars "
        "and scraps are drawn again until each object shows enough pixels, and enough that no other shape would show, "
        "so every question keeps its one right answer. "
        f"The plain model was tried on {results['pictures']['development']} pictures a level (seed "
        f"{results['seeds']['development']}); the level nearest to {percent(TARGET)} over all questions is used (bold)."
    )
    after = f"On the {results['pictures']['pictures']} pictures of the grid (seed {results['seeds']['grid']}):"
    return "\n\n".join(
        ["## The pictures", paragraph(text), table(header, rows), paragraph(after), table(["", *KINDS], seen)]
    )


def cells(entries: Sequence[dict[str, Any]], kind: str = OVERALL) -> str:
    """A table of settings: accuracy, loss, and how much attention moved."""
    rows = []
    for cell in entries:
        entry, moved = cell["comparison"][kind], cell["moved"]
        rows.append(
            [
                cell["name"],
                percent(entry["accuracy_on"], 1),
                difference(entry, "accuracy"),
                p_value(entry["accuracy_p_holm"]),
                f"{entry['mended']} / {entry['broken']}",
                difference(entry, "loss"),
                p_value(entry["loss_p_holm"]),
                percent(moved["chosen"], 1),
                number(moved["recycled"], 2),
                percent(moved["chosen_visual"], 1) if moved["layers_visual"] else "-",
            ]
        )
    header = ["setting", "accuracy", "points", "p (Holm)", "mended / broken", "loss", "p (Holm)", "edited", "moved"]
    return table([*header, "edited in layers with visual sinks"], rows)


def _section(title: str, text: str, entries: Sequence[dict[str, Any]]) -> str:
    return "\n\n".join([f"## {title}", paragraph(text), cells(entries)])


def _grid(results: dict[str, Any]) -> str:
    first = results["grid"][0]
    entry, moved = first["comparison"][OVERALL], first["moved"]
    text = (
        f"Difference from VAR off, all types together: {results['pictures']['pictures']} pictures, "
        f"{plural(entry['questions'], 'question')} a cell. p-values are corrected over the {len(results['grid'])} "
        f"cells. Visual sinks: {moved['visual_sinks']:.1f} a picture, in layers {spans(moved['layers_visual'])}. In "
        "later layers the sinks are text tokens, such as the first one, and give as well."
    )
    return _section("The grid of p and rho", text, results["grid"])


def _types(results: dict[str, Any]) -> str:
    family = len(results["grid"]) * len(QUESTION_TYPES)
    shown = [
        f"{kind} at {cell['name']} ({measure} {finding(cell['comparison'][kind], measure)})"
        for cell in results["grid"]
        for kind in QUESTION_TYPES
        for measure in ("accuracy", "loss")
        if finding(cell["comparison"][kind], measure) != "nothing shown"
    ]
    text = (
        f"{results['pictures']['pictures']} questions a type and cell. Corrected over {family} comparisons, "
        f"{plural(len(shown), 'difference')} {'is' if len(shown) == 1 else 'are'} shown"
        + (f": {join(shown)}." if shown else ".")
    )
    parts = ["## By type of question", paragraph(text)]
    for title, measure in (("Accuracy, in percentage points", "accuracy"), ("Loss, in nats", "loss")):
        rows = [
            [cell["name"], *(difference(cell["comparison"][kind], measure) for kind in QUESTION_TYPES)]
            for cell in results["grid"]
        ]
        parts.append(folded(f"{title}: difference from VAR off", table(["setting", *QUESTION_TYPES], rows)))
    return "\n\n".join(parts)


def _ablations(results: dict[str, Any]) -> str:
    entries = results["ablations"]
    shown = [
        f"{cell['name']} ({measure} {found})"
        for cell in entries
        for measure in ("accuracy", "loss")
        if (found := finding(cell["comparison"][OVERALL], measure)) != "nothing shown"
    ]
    whole, part = (cell["moved"]["chosen"] * cell["moved"]["recycled"] for cell in (entries[0], entries[-1]))
    text = (
        "Those of the paper's Tables 4 and 5, and who gives: at the profile's p and rho, on the grid's pictures, "
        f"against VAR off. Shown: {join(shown)}. Where only visual sinks give, "
        f"{percent(part / whole if whole else 0)} of the attention moves that the default "
        "moves; the rest of it comes from text sinks."
    )
    return _section("Ablations", text, entries)


def _control(results: dict[str, Any]) -> str:
    entry = results["control"][0]["comparison"][OVERALL]
    text = (
        "The negative control has practically no visual sinks, and it was never trained to answer: it gets "
        f"{percent(entry['accuracy_off'], 1)} of {entry['questions']:,} questions right, with a loss of "
        f"{entry['loss_off']:.2f}. So only its loss, and whether its most likely tokens change, can say something. "
        f"Text sinks are donors in the paper's setting, so VAR acts on it too: at the default it changes a token of "
        f"{percent(entry['changed'], 1)} of the answers. Where only visual sinks give, there is nothing to give, and "
        f"{percent(results['control'][1]['comparison'][OVERALL]['changed'], 1)} change."
    )
    return _section("The negative control", text, results["control"])


def _run(results: dict[str, Any]) -> str:
    versions = join([f"{name} {version}" for name, version in results["versions"].items()])
    return paragraph(f"Run with {versions}, in {results['dtype']} on the CPU.")
