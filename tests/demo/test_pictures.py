import subprocess
import sys

import numpy as np
import pytest

from sinkscope.demo.pictures import CELLS, COLORS, QUESTION_TYPES, SHAPES, generate


def same(first, second):
    return np.array_equal(np.asarray(first.image), np.asarray(second.image)) and first.questions == second.questions


def test_same_seed_gives_the_same_scenes():
    assert all(same(one, other) for one, other in zip(generate(3, 20), generate(3, 20), strict=True))


def test_a_longer_run_starts_with_the_same_scenes():
    assert all(same(one, other) for one, other in zip(generate(3, 5), generate(3, 20)[:5], strict=True))


def test_other_seeds_give_other_scenes():
    assert not any(same(one, other) for one, other in zip(generate(3, 20), generate(4, 20), strict=True))


def test_known_scene_stays_what_it_is():
    scene = generate(1, 1)[0]
    assert [thing.name for thing in scene.things] == ["purple cross", "red circle"]
    assert [question.answer for question in scene.questions] == ["red", "cross", "two", "bottom center", "no"]


def test_pictures_are_small_rgb():
    scene = generate(0, 1)[0]
    assert scene.image.mode == "RGB"
    assert scene.image.size == (48, 48)
    assert scene.owner.shape == (48, 48)


def test_answers_follow_from_the_things():
    for scene in generate(7, 300):
        assert tuple(question.kind for question in scene.questions) == QUESTION_TYPES
        assert len({thing.color for thing in scene.things}) == len(scene.things)
        assert len({thing.shape for thing in scene.things}) == len(scene.things)
        color, shape, count, place, existence = scene.questions
        assert [t.color for t in scene.things if t.shape in color.text] == [color.answer]
        assert [t.shape for t in scene.things if t.color in shape.text] == [shape.answer]
        assert count.answer == ("one", "two", "three")[len(scene.things) - 1]
        assert [CELLS[t.cell] for t in scene.things if t.name in place.text] == [place.answer]
        assert existence.answer == ("yes" if any(f" {t.name}?" in existence.text for t in scene.things) else "no")


def test_every_thing_is_seen_in_the_right_patches():
    for scene in generate(8, 200):
        owners = scene.patch_owners().reshape(6, 6)
        for index, thing in enumerate(scene.things):
            rows, columns = np.nonzero(owners == index)
            assert len(rows) > 0
            assert set(rows // 2 * 3 + columns // 2) == {thing.cell}


def test_existence_is_balanced():
    share = np.mean([scene.questions[4].answer == "yes" for scene in generate(9, 1000)])
    assert 0.45 < share < 0.55


@pytest.mark.parametrize("counts", [(1,), (3,)])
def test_counts_can_be_chosen(counts):
    assert {len(scene.things) for scene in generate(0, 20, counts=counts)} == set(counts)


def test_vocabulary():
    assert (len(COLORS), len(SHAPES), len(CELLS)) == (6, 4, 9)


@pytest.mark.parametrize("module", ["sinkscope.demo", "sinkscope.demo.pictures", "sinkscope.demo.assemble"])
def test_import_leaves_torch_alone(module):
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
