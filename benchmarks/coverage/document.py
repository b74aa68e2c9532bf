"""docs/coverage.md, written from the verdicts."""

from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.coverage.bars import Bar, Verdict, bars, step

PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"

HEAD = """# Which models work

Every model type in the causal-LM and image-text-to-text mappings of transformers {transformers}: {types} types in all.
Each is built small from its own config class with random weights (token ids that a config leaves empty are filled in,
as a checkpoint's are), and then run for real:

- **Profile**: two dimensions are made massive on chosen tokens from layer 2 on; capture into a run file and discovery
  must give back exactly these two. On texts, and for models that see also on pictures.
- **States**: where the model returns `hidden_states`, they must be those that sinkscope saw.
- **VAR**: `sinkscope.var` against `sinkscope.redistribute` on the eager kernel's attention maps. A left-padded batch of
  two prompts, with one picture and with two; the whole prompt, then decoding with the cache. The figure is the largest
  difference of any logit over the largest logit, on the model's own kernel; "eager" marks models whose two kernels
  differ too much by themselves, without VAR, and which are therefore compared on the eager one. Where VAR cannot apply,
  it must say so.
- **Refused (structure)**: the reason given is a property of the model's structure, and was seen to be true in a pass of
  the model itself, or in its config where there is nothing to run.

`python -m benchmarks.coverage` judges them and writes this page from `benchmarks/results/coverage.json`; nothing here
is typed by hand. Random weights show that the plumbing is right, not that a trained model has sinks.
"""


def write_document(results: dict[str, Any]) -> None:
    """Write the page."""
    PAGE.write_text(page(results))


def page(results: dict[str, Any]) -> str:
    """The whole page."""
    verdicts = list(results["types"].values())
    parts = [HEAD.format(transformers=results["transformers"], types=len(verdicts)), _bars(bars(verdicts))]
    parts += [_counts(verdicts), _exceptions(verdicts)]
    for mapping, title in (("causal-lm", "Causal language models"), ("image-text-to-text", "Multimodal models")):
        chosen = [verdict for verdict in verdicts if verdict["mapping"] == mapping]
        parts.append(_table(title, chosen, sees=mapping == "image-text-to-text"))
    return "\n".join(parts)


def _bars(all_bars: list[Bar]) -> str:
    lines = ["## The bars", "", "| bar | met by |  |", "|---|---|---|"]
    for bar in all_bars:
        lines.append(f"| {bar.words} | {bar.met} of {bar.of} | {'met' if bar.is_met else '**not met**'} |")
    lines.append("")
    for bar in all_bars:
        if bar.missing:
            lines.append(f"- Not “{bar.words.split(',')[0].split(' (')[0]}”: {', '.join(bar.missing)}.")
    return "\n".join([*lines, ""])


def _counts(verdicts: list[Verdict]) -> str:
    lines = ["## Counts", "", "| mapping | types | works | refused | failed | not built |", "|---|---|---|---|---|---|"]
    for mapping in ("causal-lm", "image-text-to-text"):
        counts = Counter(verdict["verdict"] for verdict in verdicts if verdict["mapping"] == mapping)
        cells = [str(counts[word]) for word in ("works", "refused", "failed", "not built")]
        lines.append(f"| {mapping} | {counts.total()} | {' | '.join(cells)} |")
    errors = [verdict["var"]["error"] for verdict in verdicts if step(verdict, "var") == "works"]
    if errors:
        lines += ["", f"VAR works on {len(errors)} types; its largest difference is {max(errors):.1e}."]
    return "\n".join([*lines, ""])


def _exceptions(verdicts: list[Verdict]) -> str:
    """The sentences of all that is not "works"."""
    lines = ["## Refused, failed and not built", "", "| type | mapping | verdict | reason |", "|---|---|---|---|"]
    for verdict in verdicts:
        if verdict["verdict"] != "works":
            word = verdict["verdict"] + (" (structure)" if verdict.get("structural") else "")
            lines.append(f"| {verdict['type']} | {verdict['mapping']} | {word} | {_cell(verdict['reason'])} |")
    return "\n".join([*lines, ""])


def _table(title: str, verdicts: list[Verdict], sees: bool) -> str:
    head = ["type", "verdict", "profile", "states"] + (["pictures", "connector", "VAR"] if sees else [])
    lines = [f"## {title}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for verdict in verdicts:
        cells = [verdict["type"], verdict["verdict"], _dims(verdict.get("profile")), _states(verdict)]
        if sees:
            cells += [_dims(verdict.get("pictures")), verdict["connector"], _var(verdict.get("var"))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _dims(profile: dict[str, Any] | None) -> str:
    if profile is None:
        return ""
    return "exact" if profile["status"] == "works" else profile["status"]


def _states(verdict: Verdict) -> str:
    return {True: "agree", False: "differ"}.get(verdict.get("states_agree"), "")


def _var(var: dict[str, Any] | None) -> str:
    if var is None:
        return ""
    if "error" not in var:
        return f"{var['status']}: {_cell(var['reason'])}"
    own = var.get("error_own_kernel")
    return f"{var['error']:.1e}" + (f" (eager; own kernel {own:.1e})" if own else "")


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")
