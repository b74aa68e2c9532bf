"""The settings that are compared, and what each of them does to the answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.helps.pictures import Difficulty, hard_scenes
from benchmarks.helps.scoring import Batch, Scores, batches, score
from benchmarks.helps.statistics import compare
from sinkscope.backbone.loading import LoadedModel
from sinkscope.demo.recipe import FIRST_HELD_OUT_SEED
from sinkscope.profile.schema import Profile
from sinkscope.redistribution.applicator import var
from sinkscope.redistribution.summary import LayerSummary

P_GRID = (0.2, 0.6, 1.0)
RHO_GRID = (0.5, 0.7, 0.8, 0.9)
TARGET = 0.75
"""The plain accuracy that the difficulty is chosen for."""
DEVELOPMENT_SEED, GRID_SEED, FRESH_SEED = (FIRST_HELD_OUT_SEED + 10_001 + place for place in range(3))

Report = Callable[[str], None]


@dataclass(frozen=True)
class Setting:
    """A way to run VAR: its name, and what is passed to `sinkscope.var`."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


DEFAULT = Setting("the profile's p and rho")
GRID = [Setting(f"p {p}, rho {rho}", {"p": p, "rho": rho}) for p in P_GRID for rho in RHO_GRID]
VISUAL_DONORS = Setting("donors: visual sinks only", {"donors": "visual"})
ABLATIONS = [
    DEFAULT,
    Setting("no head selection", {"head_selection": False}),
    Setting("receivers: text", {"receivers": "text"}),
    Setting("receivers: visual and text", {"receivers": "all"}),
    VISUAL_DONORS,
]
CONTROL = [DEFAULT, VISUAL_DONORS]


def prepared(loaded: LoadedModel, seed: int, n: int, difficulty: Difficulty, *, image: bool = True) -> list[Batch]:
    """The questions of one seed, ready for the model."""
    return list(batches(loaded.tokenizer, hard_scenes(seed, n, difficulty), image=image))


def ladder(
    loaded: LoadedModel, levels: Sequence[Difficulty], n: int, report: Report
) -> tuple[Difficulty, list[dict[str, Any]]]:
    """Measure the plain model at every level on the development seed; choose the one nearest to the target overall."""
    rows = []
    for level in levels:
        found = score(loaded, prepared(loaded, DEVELOPMENT_SEED, n, level))
        rows.append(
            {
                "name": level.name,
                "noise": level.noise,
                "radius": level.radius,
                "hidden": level.hidden,
                "scraps": level.scraps,
                "accuracy": found.right.mean(axis=0).tolist(),
                "all": float(found.right.mean()),
            }
        )
        report(f"difficulty {level.name}: plain accuracy {found.right.mean():.3f}")
    nearest = min(range(len(levels)), key=lambda place: abs(rows[place]["all"] - TARGET))
    return levels[nearest], rows


def measure(
    loaded: LoadedModel,
    profile: Profile,
    questions: Sequence[Batch],
    settings: Sequence[Setting],
    off: Scores,
    report: Report,
) -> list[dict[str, Any]]:
    """Run every setting, and compare each with VAR off."""
    cells = []
    for setting in settings:
        with var(loaded.model, profile, **setting.options) as run:
            on = score(loaded, questions)
        found = compare(off, on)
        cells.append(
            {
                "name": setting.name,
                "p": run.config.p,
                "rho": run.config.rho,
                "comparison": found,
                "moved": moved(run.summary(), len(off.right)),
            }
        )
        entry = found["all"]
        report(
            f"{setting.name}: accuracy {entry['accuracy_difference']:+.4f} ({entry['mended']} mended, "
            f"{entry['broken']} broken), loss {entry['loss_difference']:+.4f}"
        )
    return cells


def moved(layers: Sequence[LayerSummary], pictures: int) -> dict[str, float | list[int]]:
    """How much attention VAR moved: over all edited layers, and over those that hold visual sinks.

    Returns
    -------
    dict
        ``chosen``: share of the (head, row) pairs that were edited; ``recycled``: mean attention moved in an edited
        pair; both again with ``_visual`` for layers that hold at least one visual sink in ten pictures;
        ``layers_visual``: these layers; ``visual_sinks``: visual sinks a picture, in the layer that has most.
    """

    def totals(some: Sequence[LayerSummary]) -> tuple[float, float]:
        pairs = sum(layer.pairs for layer in some)
        edited = sum(layer.pairs * layer.image_centric_share for layer in some)
        recycled = sum(layer.pairs * layer.image_centric_share * layer.recycled_attention for layer in some)
        return (edited / pairs if pairs else 0.0), (recycled / edited if edited else 0.0)

    visual = [layer for layer in layers if layer.visual_sink_tokens >= 0.1 * pictures]
    chosen, recycled = totals(layers)
    chosen_visual, recycled_visual = totals(visual)
    return {
        "chosen": chosen,
        "recycled": recycled,
        "chosen_visual": chosen_visual,
        "recycled_visual": recycled_visual,
        "layers_visual": [layer.layer for layer in visual],
        "visual_sinks": max((layer.visual_sink_tokens for layer in layers), default=0) / pictures,
    }
