"""Whole runs on tiny models: contents, resume, refusals."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from capture_models import make_llama
from PIL import Image

from sinkscope.backbone.loading import LoadedModel
from sinkscope.calibration import Sample
from sinkscope.capture.collector import Collector
from sinkscope.capture.encode import encode
from sinkscope.capture.runner import run
from sinkscope.capture.settings import CaptureSettings
from sinkscope.discovery import discover
from sinkscope.errors import InputError, NonFiniteActivationError, SinkscopeError, StoreError
from sinkscope.store.layout import STATISTICS_FIELDS, file_bytes
from sinkscope.store.reader import RunReader

ROOT = Path(__file__).parents[2]
SENTENCE = "The quick brown fox, said A., jumps over 12 lazy dogs. Then: nothing! "
SAMPLES = [Sample(text=SENTENCE[number % 30 :] + "ab. " * (number % 7)) for number in range(40)]
SETTINGS = CaptureSettings(batch_tokens=256, max_length=64, sampled_tokens=200, attention_texts=10, commit_seconds=0)

CHILD = """
import sys, time, torch
torch.set_num_threads(1)
from capture_models import make_llama
from test_capture_runner import SAMPLES, SETTINGS
from sinkscope.capture.runner import run
loaded = make_llama()
print("ready", flush=True)

def tell(done, total):
    print(done, flush=True)
    time.sleep(0.05)  # Neither the writer's thread nor whoever kills may fall far behind.

run(loaded, SAMPLES, sys.argv[1], SETTINGS, resume=True, progress=tell)
"""


@pytest.fixture(scope="module")
def whole(llama: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(llama, SAMPLES, tmp_path_factory.mktemp("whole") / "run.h5", SETTINGS, source="tests")


def datasets(path: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with h5py.File(path) as file:
        for group in ("tokens", "statistics", "largest", "sampled", "attention"):
            found |= {f"{group}/{name}": dataset[()].tobytes() for name, dataset in file[group].items()}
    return found


def test_a_run_holds_what_the_model_does(llama: LoadedModel, whole: Path) -> None:
    with RunReader(whole) as reader, torch.inference_mode():
        reader.verify()
        attributes = reader.attributes
        assert (attributes.status, attributes.attention, attributes.dtype) == ("complete", "measured", "float32")
        assert attributes.backbone["num_kv_heads"] == 2
        assert attributes.calibration["source"] == "tests"
        assert attributes.calibration["tokens"] == len(reader.tokens) == int(reader.statistics.count)
        assert "torch" in attributes.versions
        token, _ = reader.sampled(0)
        for sample in (0, 7, 23):
            rows = np.flatnonzero(reader.tokens.sample == sample)
            assert reader.tokens.position[rows].tolist() == list(range(len(rows)))
            ids = torch.from_numpy(reader.tokens.id[rows].astype(np.int64))[None]
            states = llama.model(ids, output_hidden_states=True).hidden_states
            for layer in range(3):  # transformers' last entry is taken after the final norm.
                _, value, rms = reader.largest(layer)
                exact = states[layer][0].numpy()
                np.testing.assert_allclose(rms[rows], np.sqrt((exact**2).mean(1)), rtol=1e-4)
                np.testing.assert_allclose(np.abs(value[rows]), -np.sort(-np.abs(exact))[:, :8], rtol=1e-3, atol=1e-3)
                sampled = reader.sampled(layer)[1][np.isin(token, rows)]
                chosen = token[np.isin(token, rows)] - rows[0]
                np.testing.assert_allclose(sampled, (exact / rms[rows][:, None])[chosen], rtol=1e-2, atol=1e-2)
        # The planted dimension: every "." is among its strongest tokens.
        texts = [reader.token_text[identifier] for identifier in reader.tokens.id[reader.statistics.topk_token[1, 5]]]
        assert set(texts) == {"."}
        attention = reader.attention
        assert attention is not None
        assert len(set(reader.tokens.sample[attention.token].tolist())) == 10
        assert np.isfinite(attention.drawn[attention.later_queries > 0]).all()


def test_batches_change_nothing_but_rounding(llama: LoadedModel, whole: Path, tmp_path: Path) -> None:
    single = run(llama, SAMPLES, tmp_path / "run.h5", replace(SETTINGS, batch_tokens=1))
    with RunReader(whole) as first, RunReader(single) as second:
        for name in STATISTICS_FIELDS:
            if name == "topk_token":  # Equal states may be rounded apart by the forward pass, and then change places.
                continue
            np.testing.assert_allclose(
                getattr(first.statistics, name), getattr(second.statistics, name), rtol=2e-3, atol=2e-3, err_msg=name
            )
        np.testing.assert_array_equal(first.tokens.id, second.tokens.id)
        np.testing.assert_array_equal(first.sampled(0)[0], second.sampled(0)[0])
        for layer in range(4):
            np.testing.assert_allclose(first.largest(layer)[1][:, 0], second.largest(layer)[1][:, 0], rtol=1e-4)
        assert first.attention is not None
        assert second.attention is not None
        np.testing.assert_allclose(first.attention.drawn, second.attention.drawn, rtol=1e-3, atol=1e-6)


def test_killed_then_resumed_is_the_same_bit_for_bit(llama: LoadedModel, whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    moments, kills = random.Random(1), 0
    for _ in range(2):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)])},
        )
        assert child.stdout is not None
        for _ in range(moments.randint(2, 4)):
            child.stdout.readline()
        time.sleep(moments.uniform(0, 0.02))
        child.send_signal(signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
        child.stdout.close()
    assert kills
    with RunReader(path) as reader:
        reader.verify()
        done, total = reader.progress
        assert 0 < done < total
    run(llama, SAMPLES, path, SETTINGS, resume=True, source="given samples")
    before, after = datasets(whole), datasets(path)
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == []


def test_interrupted_run_can_be_resumed(llama: LoadedModel, whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(llama, SAMPLES, path, SETTINGS, progress=interrupt)
    with RunReader(path) as reader:
        assert reader.attributes.status == "running"
        assert 0 < int(reader.statistics.count) == len(reader.tokens)
    seen: list[int] = []
    run(llama, SAMPLES, path, SETTINGS, resume=True, progress=lambda done, total: seen.append(done))
    assert datasets(path) == datasets(whole)
    assert seen[0] > 0.4 * seen[-1]
    content, seen = path.read_bytes(), []
    run(llama, SAMPLES, path, SETTINGS, resume=True, progress=lambda done, total: seen.append(done))
    assert (path.read_bytes(), seen) == (content, [])  # Complete: nothing is done again.


def test_a_run_without_later_queries_says_so(llama: LoadedModel, tmp_path: Path) -> None:
    alone = [Sample(text=letter) for letter in "abcdef" if len(encode(llama, [Sample(text=letter)], 64)[0]) == 1]
    profile = discover(run(llama, alone, tmp_path / "run.h5", SETTINGS))
    assert profile.evidence.attention is None
    assert any(
        "attention: there were no tokens to measure it on; give longer" in said for said in profile.evidence.notes
    )


def test_resume_refuses_another_run(llama: LoadedModel, whole: Path) -> None:
    with pytest.raises(StoreError, match="exists already"):
        run(llama, SAMPLES, whole, SETTINGS, source="tests")
    with pytest.raises(StoreError, match=r"settings\.seed 0, not 1|seed 0, not 1"):
        run(llama, SAMPLES, whole, replace(SETTINGS, seed=1), resume=True, source="tests")
    with pytest.raises(StoreError, match=r"calibration\.fingerprint"):
        run(llama, SAMPLES[1:], whole, SETTINGS, resume=True, source="tests")
    trained = make_llama()
    with torch.no_grad():
        trained.model.model.layers[0].mlp.down_proj.weight[0, 0] += 1
    with pytest.raises(StoreError, match=r"settings\.weights"):
        run(trained, SAMPLES, whole, SETTINGS, resume=True, source="tests")


def test_pictures(llava: LoadedModel, tmp_path: Path) -> None:
    pictures = [Sample(images=(Image.new("RGB", (40, 30), colour),)) for colour in ("red", "green", "blue")]
    path = run(llava, SAMPLES[:4] + pictures, tmp_path / "run.h5", SETTINGS)
    with RunReader(path) as reader:
        assert reader.attributes.calibration["kinds"]["visual"] == 48
        assert np.bincount(reader.tokens.kind, minlength=3)[2] == 48
        assert reader.attention is not None
        assert set(reader.tokens.kind[reader.attention.token].tolist()) == {0, 1, 2}
        first, second = (np.flatnonzero(reader.tokens.sample == sample)[:4] for sample in (4, 5))
        assert not np.allclose(reader.largest(1)[1][first], reader.largest(1)[1][second])  # The pictures are seen.


def test_attention_that_cannot_be_measured_is_said(llama: LoadedModel, tmp_path: Path) -> None:
    closed = LoadedModel(
        llama.model, llama.tokenizer, None, replace(llama.anatomy, attention_interface=False), llama.model_id
    )
    with RunReader(run(closed, SAMPLES[:3], tmp_path / "a.h5", SETTINGS)) as reader:
        assert reader.attributes.attention.startswith("unavailable: the attention of llama does not")
        assert reader.attention is None
    with RunReader(run(llama, SAMPLES[:3], tmp_path / "b.h5", replace(SETTINGS, attention=False))) as reader:
        assert reader.attributes.attention == "not requested"
        assert reader.attention is None


def test_non_finite_activations_stop_the_run(tmp_path: Path) -> None:
    broken = make_llama()
    with torch.no_grad():
        broken.model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteActivationError, match=r"entering layer 2 is not finite in sample \d+ at position 0"):
        run(broken, SAMPLES, tmp_path / "run.h5", SETTINGS)
    with RunReader(tmp_path / "run.h5") as reader:
        assert reader.attributes.status == "running"


def test_no_samples_and_training_mode(llama: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no calibration samples"):
        run(llama, [], tmp_path / "run.h5")
    llama.model.train()
    run(llama, SAMPLES[:2], tmp_path / "run.h5", SETTINGS)
    assert llama.model.training
    llama.model.eval()


def test_a_model_that_fails_is_one_clear_line(tmp_path: Path) -> None:
    loaded = make_llama()

    def fail(*_: object) -> None:
        raise RuntimeError("a kernel\nis missing")

    loaded.model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(
        SinkscopeError, match=r"forward pass of tiny-llama failed \(RuntimeError: a kernel is missing\)"
    ):
        run(loaded, [Sample(text="Some words.")], tmp_path / "run.h5", CaptureSettings(attention=False))


def test_a_batch_that_does_not_fit_goes_in_halves(
    llama: LoadedModel, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out halfway through the layers, at more than 100 positions."""
    passes: list[int] = []

    class Small(Collector):
        def __call__(self, layer: int, hidden_state: torch.Tensor) -> None:
            positions = hidden_state.shape[0] * hidden_state.shape[1]
            if layer == 2 and positions > 100:
                raise torch.OutOfMemoryError("CUDA out of memory")
            super().__call__(layer, hidden_state)
            if layer == 3:
                passes.append(positions)

    monkeypatch.setattr("sinkscope.capture.measuring.Collector", Small)
    path = run(llama, SAMPLES, tmp_path / "run.h5", SETTINGS, source="tests")
    assert max(passes) <= 100
    assert sum(positions > 50 for positions in passes) > 5  # What fits is not cut further.
    with RunReader(whole) as one, RunReader(path) as other:
        other.verify()
        assert other.progress == one.progress
        np.testing.assert_array_equal(one.statistics.count, other.statistics.count)
        np.testing.assert_allclose(one.statistics.peak_magnitude, other.statistics.peak_magnitude, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(one.statistics.sum_rms, other.statistics.sum_rms, rtol=1e-4)
        np.testing.assert_array_equal(one.sampled(1)[0], other.sampled(1)[0])
        np.testing.assert_allclose(one.largest(2)[2], other.largest(2)[2], rtol=1e-3)

    class Tiny(Small):
        def __call__(self, layer: int, hidden_state: torch.Tensor) -> None:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setattr("sinkscope.capture.measuring.Collector", Tiny)
    with pytest.raises(SinkscopeError, match=r"out of memory in one sample of \d+ tokens; .*--dtype bfloat16"):
        run(llama, SAMPLES, tmp_path / "other.h5", SETTINGS)


@pytest.mark.parametrize("keep", ["topk", "all", "none"])
def test_what_is_kept(llama: LoadedModel, whole: Path, tmp_path: Path, keep: str) -> None:
    path = run(llama, SAMPLES, tmp_path / "run.h5", replace(SETTINGS, keep=keep), source="tests")
    with RunReader(whole) as sample, RunReader(path) as reader:
        reader.verify()
        for name in STATISTICS_FIELDS:
            np.testing.assert_array_equal(getattr(sample.statistics, name), getattr(reader.statistics, name))
        count = len(reader.tokens)
        for layer in range(4):
            token, states = reader.sampled(layer)
            expected = sample.sampled(layer) if keep != "none" else (np.zeros(0), np.zeros((0, 32)))
            np.testing.assert_array_equal(token, expected[0])  # A run that keeps all is read as one that keeps a few.
            np.testing.assert_array_equal(states, expected[1])
            every, states = reader.sampled(layer, every=True)
            np.testing.assert_array_equal(every, np.arange(count) if keep == "all" else expected[0])
            assert len(states) == len(every)
            peaks, states = reader.peak_states(layer)
            if keep != "topk":
                assert len(peaks) == len(states) == 0
                continue
            samples = reader.progress[1]
            assert np.bincount(reader.tokens.sample[peaks]).tolist() == [4] * samples
            dim, value, rms = reader.largest(layer)
            kept = np.take_along_axis(states * rms[peaks, None], dim[peaks], 1)
            np.testing.assert_allclose(kept, value[peaks], rtol=2e-3, atol=1e-3)
            # The planted dimension: wherever a sample has a ".", it is the first.
            share = value[:, 0] ** 2 / (rms**2 * 32)
            if layer == 1:
                first = peaks.reshape(samples, 4)[:, 0]
                highest = [share[reader.tokens.sample == number].max() for number in range(samples)]
                np.testing.assert_allclose(share[first], highest, rtol=0.05)
    if keep == "none":
        with pytest.raises(StoreError, match=r"keeps no hidden states, so .* profile with --keep sample"):
            discover(path)
    else:
        assert discover(path).to_json() == discover(whole).to_json()


def test_a_run_file_stays_within_its_budget(llama: LoadedModel, tmp_path: Path) -> None:
    settings = replace(SETTINGS, keep="all", attention=False)
    whole = run(llama, SAMPLES, tmp_path / "whole.h5", settings)
    with RunReader(whole) as reader:
        states = len(reader.plan.sampled_tokens)
        without = file_bytes(replace(reader.plan, sampled_tokens=reader.plan.sampled_tokens[:0]))
    assert whole.stat().st_size <= file_bytes(reader.plan) < whole.stat().st_size + 2**16
    each = (file_bytes(reader.plan) - without) / states
    for number, part in enumerate((0.3, 0.6, 0.9)):
        limit = int(without + part * states * each)
        path = run(llama, SAMPLES, tmp_path / f"{number}.h5", replace(settings, max_store=limit))
        assert path.stat().st_size <= limit
        with RunReader(path) as cut, RunReader(whole) as reader:
            kept = cut.plan.sampled_tokens
            assert 0.9 * part * states - 5 < len(kept) <= part * states
            np.testing.assert_array_equal(
                cut.sampled(1, every=True)[1],
                reader.sampled(1, every=True)[1][np.isin(reader.plan.sampled_tokens, kept)],
            )
            told = cut.attributes.settings
            assert (told["keep"], told["sampled_tokens"]) == ("sample", len(kept)) or "kept_states" in told
            assert told["max_store"] == limit, "for those who go on with it"
        with pytest.raises(StoreError, match=r"settings\.(kept_states|sampled_tokens|keep) "):
            run(llama, SAMPLES, path, settings, resume=True)
        run(llama, SAMPLES, path, replace(settings, max_store=limit), resume=True)


def test_a_run_file_that_cannot_fit_is_refused_before_the_model_runs(llama: LoadedModel, tmp_path: Path) -> None:
    settings = replace(SETTINGS, keep="all", attention=False)
    with pytest.raises(
        InputError, match=r"would take [\d,]+ bytes, and --max-store allows 50,000; give fewer --tokens"
    ):
        run(llama, SAMPLES, tmp_path / "other.h5", replace(settings, max_store=50_000))
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="keep is 'some'"):
        replace(settings, keep="some")
