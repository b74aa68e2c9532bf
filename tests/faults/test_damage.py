"""Damaged run files of every form, as in `python -m benchmarks.faults` but fewer of them."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.faults import damage
from benchmarks.faults.damage import DAMAGES, check
from benchmarks.faults.run_forms import Form, forms

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="watches processes as Linux shows them"
)


def test_damaged_files_are_read_as_they_were_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Form] = {}
    monkeypatch.setattr(damage, "forms", lambda *arguments: made.update(forms(*arguments)) or made)
    outcome = check(tmp_path, 70, seed=0)
    assert outcome.problems == []
    assert outcome.tried == 70
    assert outcome.figures["read: refused"] > 20
    assert set(outcome.figures["forms"]) >= {"unfinished", "complete", "keep none", "gzip", "blosc2", "share", "merged"}
    assert len(made["unfinished"].states) > 2, "a run with several commits"

    # Files that are not damaged are read; and one that holds something else than it should is told from them.
    made["complete"] = replace(made["complete"], data=made["keep topk"].data)
    monkeypatch.setattr(damage, "forms", lambda *_: made)
    monkeypatch.setattr(damage, "DAMAGES", {"none": lambda form, _: form.data})
    outcome = check(tmp_path / "again", 40, seed=0)
    assert not any("refused" in ending for ending in outcome.figures if not ending.startswith(("resume", "profile")))
    assert outcome.problems
    assert all(problem.startswith("complete, none, ") for problem in outcome.problems)
    assert "was read as something that it never was" in outcome.problems[0]


def test_every_damage_changes_the_file() -> None:
    data = random.Random(0).randbytes(50_000)
    older, others = (data[:9000] + bytes(5000) + data[14_000:],), (bytes(60_000),)
    form = Form(data, None, frozenset(), "", "", older, (100, 9000, 40_000), "", others)
    for name, how in DAMAGES.items():
        changed = [how(form, random.Random(seed)) != data for seed in range(20)]
        assert sum(changed) > 10, name
