"""Files with all checksums in order that cannot be true: refused for what they say, with one clear error."""

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from store_runs import make_plan, make_rows, make_statistics

from sinkscope.discovery import discover
from sinkscope.errors import StoreError
from sinkscope.store import tokens as store_tokens
from sinkscope.store.layout import RunPlan, SampleRows
from sinkscope.store.merge import merge
from sinkscope.store.reader import RunReader
from sinkscope.store.seal import apply_seal
from sinkscope.store.soundness import check_plan, check_statistics
from sinkscope.store.tokens import TOKEN_DTYPES, TokenTable
from sinkscope.store.writer import RunWriter


def poked(array: Any, place: int, value: int) -> Any:
    changed = array.copy()
    changed[place] = value
    return changed


def tokens(name: str, place: int, value: int) -> Callable[[RunPlan], RunPlan]:
    def change(plan: RunPlan) -> RunPlan:
        columns = {column: getattr(plan.tokens, column) for column in TOKEN_DTYPES}
        return replace(plan, tokens=TokenTable.of_columns(**columns | {name: poked(columns[name], place, value)}))

    return change


def attributes(**changes: Any) -> Callable[[RunPlan], RunPlan]:
    return lambda plan: replace(plan, attributes=replace(plan.attributes, **changes))


def rows(name: str, place: int, value: int) -> Callable[[RunPlan], RunPlan]:
    return lambda plan: replace(plan, **{name: poked(getattr(plan, name), place, value)})


LIES: dict[str, tuple[Callable[[RunPlan], RunPlan], str]] = {
    "a sample that is not there": (tokens("sample", -1, 6), "/tokens/sample"),
    "samples that go back": (tokens("sample", 30, 0), "/tokens/sample"),
    "a negative position": (tokens("position", 3, -1), "/tokens/position"),
    "a kind that is not there": (tokens("kind", 3, 3), "/tokens/kind"),
    "an order with a sample twice": (rows("order", 0, 0), "/progress/order"),
    "an order that leaves the run": (rows("order", 0, 2**31 - 1), "/progress/order"),
    "a sampled token that is not there": (rows("sampled_tokens", -1, 60), "/sampled/token"),
    "sampled tokens out of order": (rows("sampled_tokens", 1, 0), "/sampled/token"),
    "a negative sampled token": (rows("sampled_tokens", 0, -1), "/sampled/token"),
    "attention of half a sample": (
        lambda plan: replace(plan, attention_tokens=plan.attention_tokens[1:]),
        "/attention",
    ),
    "fewer fingerprints": (lambda plan: replace(plan, fingerprints=plan.fingerprints[1:]), "/samples/fingerprint"),
    "no layers": (attributes(num_layers=0), "num_layers"),
    "endless width": (attributes(hidden_size=2**40), "hidden_size"),
    "levels that are none": (lambda plan: replace(plan, levels=(float("nan"), 0.5)), "levels"),
    "settings that are a list": (attributes(settings=[1]), "settings"),
    "a budget in words": (attributes(settings={"keep": "all", "sampled_tokens": "many"}), "settings.sampled_tokens"),
    "no budget": (attributes(settings={"keep": "all"}), "settings"),
    "half of the attention's settings": (attributes(settings={"attention_texts": 1}), "settings"),
    "calibration that is null": (attributes(calibration=None), "calibration"),
    "a source that is a list": (attributes(calibration={"source": ["a"]}), "calibration.source"),
    "a rank without its samples": (attributes(calibration={"part": {"rank": 0, "ranks": 2}}), "/samples/part"),
    "versions that are numbers": (attributes(versions={"torch": 2}), "versions.torch"),
    "a type of models that is a number": (attributes(backbone={"model_type": 7}), "backbone.model_type"),
}


def test_a_plan_of_a_run_is_sound() -> None:
    check_plan(make_plan())
    check_plan(make_plan(samples=1, length=1))


@pytest.mark.parametrize("name", LIES)
def test_a_plan_that_cannot_be_is_refused(name: str) -> None:
    change, reason = LIES[name]
    with pytest.raises(ValueError, match=reason):
        check_plan(change(make_plan()))


def test_samples_are_checked_over_the_ends_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_tokens, "BLOCK", 10)
    check_plan(make_plan())
    with pytest.raises(ValueError, match="/tokens/sample"):
        check_plan(tokens("sample", 10, 2)(make_plan()))


@pytest.mark.parametrize(
    ("name", "value"),
    [("topk_token", 60), ("topk_token", -2), ("topk_odds", np.nan), ("sum_rms", np.inf), ("topk_odds", -1.0)],
)
def test_statistics_that_cannot_be_are_refused(name: str, value: float) -> None:
    plan, good = make_plan(), make_statistics(make_plan(), 6)
    check_statistics(good, plan)
    array = getattr(good, name).copy()
    array.reshape(-1)[7 % array.size] = value
    with pytest.raises(ValueError, match="/statistics"):
        check_statistics(replace(good, **{name: array}), plan)


def written(path: Path, plan: RunPlan, change: Callable[[SampleRows], SampleRows] = lambda rows: rows) -> Path:
    with RunWriter.create(path, plan) as writer:
        for sample in plan.order:
            writer.write_sample(change(make_rows(plan, int(sample))))
        writer.complete(make_statistics(plan, 6))
    return path


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("largest_dim", 16, "/largest/dim"),
        ("largest_dim", -1, "/largest/dim"),
        ("largest_value", np.nan, "/largest/value"),
        ("states", np.inf, "/sampled/states"),
        ("states", np.nan, "/sampled/states"),
        ("peak_place", 10, "/peaks/place"),
        ("drawn", np.inf, "/attention/drawn"),
    ],
)
def test_rows_that_cannot_be_are_refused(tmp_path: Path, name: str, value: float, reason: str) -> None:
    def change(rows: SampleRows) -> SampleRows:
        array = getattr(rows, name)
        if array is None or not array.size:
            return rows
        array = array.copy()
        array.reshape(-1)[-1] = value
        return replace(rows, **{name: array})

    with RunReader(written(tmp_path / "run.h5", make_plan(), change)) as reader:
        with pytest.raises(StoreError, match=reason) as caught:
            reader.verify()
        with pytest.raises(StoreError, match=reason):
            [reader.rows(sample) for sample in range(6)]
    assert "\n" not in str(caught.value)


def forged(path: Path, change: Callable[[h5py.File], object], raw: Callable[[bytearray], object] = len) -> Path:
    """A run file that was changed and sealed again."""
    written(path, make_plan())
    with h5py.File(path, "r+") as file:
        change(file)
        seal = file["progress/seal"].id.get_offset()
    data = bytearray(path.read_bytes())
    raw(data)
    path.write_bytes(data)
    apply_seal(path, [], seal, {})
    return path


def retyped(name: str, dtype: Any) -> Callable[[h5py.File], object]:
    def change(file: h5py.File) -> None:
        values = file[name][()].astype(dtype)
        del file[name]
        file[name] = values

    return change


@pytest.mark.parametrize(
    "name",
    [
        "tokens/id",
        "token_text/id",
        "samples/fingerprint",
        "progress/order",
        "progress/record",
        "sampled/token",
        "attention/token",
        "checksums/largest/dim",
    ],
)
@pytest.mark.parametrize("dtype", ["float64", "S20", ">i8"])
def test_a_table_of_another_dtype_is_refused(tmp_path: Path, name: str, dtype: str) -> None:
    path = forged(tmp_path / "run.h5", retyped(name, dtype))
    with pytest.raises(StoreError, match=rf"/{name} is ") as caught:
        RunReader(path)
    assert "\n" not in str(caught.value)


def test_a_text_to_which_a_table_leads_many_times_is_refused_unread(tmp_path: Path) -> None:
    text, count = b"Z" * 20_000, 1000
    places = []

    def change(file: h5py.File) -> None:
        del file["token_text/id"], file["token_text/text"]
        file["token_text/id"] = np.arange(count, dtype=np.int32)
        dataset = file.create_dataset("token_text/text", (count,), h5py.string_dtype("utf-8"))
        dataset[:1], dataset[1:] = text, b"q"
        places.append(dataset.id.get_offset())

    def repeat(data: bytearray) -> None:
        start = places[0]
        data[start : start + 16 * count] = data[start : start + 16] * count

    path = forged(tmp_path / "run.h5", change, repeat)
    with pytest.raises(StoreError, match="/token_text/text is larger than its file"):
        RunReader(path)


def test_an_attribute_that_is_a_list_of_texts_is_refused(tmp_path: Path) -> None:
    path = forged(tmp_path / "run.h5", lambda file: file.attrs.update({"model_id": ["a", "b"]}))
    with pytest.raises(StoreError, match="its attribute model_id is neither a number nor a text"):
        RunReader(path)


def test_attention_that_was_not_measured_is_sound(tmp_path: Path) -> None:
    def change(rows: SampleRows) -> SampleRows:
        return rows if rows.drawn is None else replace(rows, drawn=np.full_like(rows.drawn, np.nan))

    with RunReader(written(tmp_path / "run.h5", make_plan(), change)) as reader:
        reader.verify()


def test_a_backbone_that_no_profile_can_have_is_an_error_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "run.h5", make_plan(backbone={"model_type": "x", "hidden_size": 0, "num_layers": 3}))
    with pytest.raises(StoreError, match=r"run\.h5 holds what no profile can be made of: hidden_size"):
        discover(path)


def test_an_odd_key_leaves_the_message_on_one_line(tmp_path: Path) -> None:
    path = written(tmp_path / "run.h5", make_plan(settings={"a\nb" + "c" * 500: 1}))
    with pytest.raises(StoreError, match=r"a run with settings\.a bccc") as caught:
        RunWriter.resume(path, make_plan(settings={}))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_runs_that_tell_different_things_do_not_merge(tmp_path: Path) -> None:
    other = make_plan(calibration={"tokens": 60})
    fields = {field.name: getattr(other, field.name) for field in dataclasses.fields(other)}
    other = RunPlan(**fields | {"fingerprints": other.fingerprints + np.uint64(50)})
    paths = [written(tmp_path / "a.h5", make_plan()), written(tmp_path / "b.h5", other)]
    with pytest.raises(StoreError, match="tells the fingerprint of its data"):
        merge(paths, tmp_path / "merged.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "b.h5"]
