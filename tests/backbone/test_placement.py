"""Models whose weights rest on disk in part: the same profile, the same VAR, the same run to resume."""

import gc
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import accelerate
import pytest
import torch
from placement_models import IMAGE_ID, ON_DISK, SINK_DIM, save_llama, save_llava, save_mixtral
from safetensors.torch import load_file, save_file

import sinkscope
from sinkscope.backbone import memory, placement
from sinkscope.backbone.loading import LoadedModel, load
from sinkscope.calibration import default_texts
from sinkscope.capture.planning import weights_fingerprint
from sinkscope.capture.runner import run
from sinkscope.capture.settings import CaptureSettings
from sinkscope.pipeline import profile_model
from sinkscope.profile import Profile, read_profile

CAUSAL_LM = ON_DISK | {"model.norm": "cpu", "lm_head": "cpu"}
LIMITED = Path(__file__).with_name("limited.py")


def placed(folder: Path, way: str, scratch: Path) -> LoadedModel:
    """The model with its decoder layers on disk, in one of two ways."""
    if way == "load":
        return load(folder, device_map=CAUSAL_LM)
    loaded = load(folder)
    accelerate.dispatch_model(loaded.model, CAUSAL_LM, offload_dir=scratch)
    return loaded


def facts(profile: Profile) -> dict[str, object]:
    data = profile.model_dump()
    data["provenance"].pop("date")
    return data


@pytest.mark.parametrize(("way", "tied"), [("load", True), ("dispatch_model", False)])
def test_a_profile_does_not_depend_on_where_the_weights_rest(tmp_path, way, tied):
    folder = save_llama(tmp_path / "model", tie_word_embeddings=tied)
    plain, split = load(folder), placed(folder, way, tmp_path / "scratch")
    assert not placement.offloaded_bytes(plain.model)
    assert all(parameter.is_meta for parameter in split.model.model.layers.parameters())
    assert weights_fingerprint(plain.model) == weights_fingerprint(split.model)
    profiles = [profile_model(loaded, tokens=800, attention=False) for loaded in (plain, split)]
    assert facts(profiles[0]) == facts(profiles[1])
    assert profiles[0].dims == (SINK_DIM,)


def test_a_run_begun_in_memory_is_resumed_from_disk(tmp_path):
    folder = save_llama(tmp_path / "model")
    texts, settings = default_texts()[:4], CaptureSettings(batch_tokens=512, commit_seconds=0)
    run(load(folder), texts, tmp_path / "whole.h5", settings)

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(load(folder), texts, tmp_path / "begun.h5", settings, progress=stop)
    split = load(folder, device_map=CAUSAL_LM)
    # Left to themselves, the batches are those of the file.
    run(split, texts, tmp_path / "begun.h5", CaptureSettings(commit_seconds=0), resume=True)
    whole, resumed = (sinkscope.discover(tmp_path / name, name="x") for name in ("whole.h5", "begun.h5"))
    assert facts(whole) == facts(resumed)

    weights = load_file(folder / "model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(sinkscope.errors.StoreError, match="weights"):
        run(load(folder, device_map=CAUSAL_LM), texts, tmp_path / "begun.h5", settings, resume=True)


def test_var_edits_a_model_on_disk_as_one_in_memory(tmp_path):
    folder = save_llava(tmp_path / "model")
    layers = {
        "model.language_model.layers.0": "cpu",
        **{f"model.language_model.layers.{layer}": "disk" for layer in (1, 2, 3)},
    }
    others = ("model.vision_tower", "model.multi_modal_projector", "lm_head")
    inside = (f"model.language_model.{name}" for name in ("embed_tokens", "norm", "rotary_emb"))
    plain, split = load(folder), load(folder, device_map=dict.fromkeys((*others, *inside), "cpu") | layers)
    profile = Profile.model_validate(
        {
            "name": "planted",
            "verdict": "sinks",
            "reason": "planted",
            "backbone": {"model_type": "llama", "hidden_size": 64, "num_layers": 4},
            "sink_dimensions": [{"dim": SINK_DIM}],
            "tau": {"phi": 6.0},
            "var": {"p": 0.6, "rho": 0.3, "attention_floor": 0.1},
            "provenance": {"kind": "measured"},
        }
    )
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor([[1, *[IMAGE_ID] * 9, *torch.randint(4, 90, (6,), generator=generator).tolist()]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs["pixel_values"] = torch.randn(1, 3, 24, 24, generator=generator)
    scores = []
    for loaded in (plain, split):
        with sinkscope.var(loaded.model, profile, donors="all") as work:
            answer = loaded.model.generate(
                **inputs, max_new_tokens=5, do_sample=False, output_scores=True, return_dict_in_generate=True
            )
        assert any(layer.image_centric_share for layer in work.summary())
        scores.append(torch.stack(answer.scores))
    torch.testing.assert_close(scores[1], scores[0], rtol=0, atol=0)
    untouched = plain.model.generate(
        **inputs, max_new_tokens=5, do_sample=False, output_scores=True, return_dict_in_generate=True
    )
    assert (torch.stack(untouched.scores) - scores[0]).abs().max() > 1e-3


def test_weights_changed_by_loading_rest_in_a_folder_that_goes_with_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    folder = save_mixtral(tmp_path / "model")
    plain, split = load(folder), load(folder, device_map=CAUSAL_LM)
    ids = torch.arange(4, 90)[None]
    with torch.inference_mode():
        assert torch.equal(plain.model(ids).logits, split.model(ids).logits)
    assert weights_fingerprint(plain.model) == weights_fingerprint(split.model)
    assert len(list((tmp_path / "scratch").iterdir())) == 1
    del split
    gc.collect()
    assert not list((tmp_path / "scratch").iterdir())
    # The weights of other models are read where they are.
    load(save_llama(tmp_path / "plain"), device_map=CAUSAL_LM)
    assert not list((tmp_path / "scratch").iterdir())


def test_a_model_in_memory_has_no_values_on_the_meta_device(tmp_path):
    with torch.device("meta"):
        model = torch.nn.Linear(2, 2)
    with pytest.raises(sinkscope.errors.UnsupportedModelError, match="no values"):
        placement.parameter_values(model, "weight")


def test_accelerators_come_first_then_memory_then_disk(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(placement, "get_max_memory", lambda: {0: 100, 1: 100, "cpu": 10**12})
    monkeypatch.setattr(placement, "free_memory", lambda: 400)
    assert placement.place("auto", lambda: 530) == {"device_map": "auto"}
    # Where weights stay on disk, a pass needs the room.
    tight = {"device_map": "auto", "max_memory": {0: 90, 1: 90, "cpu": 100}}
    assert placement.place("auto", lambda: 550) == tight
    assert placement.to_offload(tight)
    assert placement.place("cuda:1", lambda: 550) == {"device_map": "cuda:1"}
    assert placement.place("cpu", lambda: 350) == {}
    assert placement.place("cpu", lambda: 370)["max_memory"] == {"cpu": 100}


@pytest.mark.parametrize(
    ("version", "counted", "free"),
    [("UNIFIED", "inactive_file", 70), ("LEGACY", "total_inactive_file", 70)],
)
def test_memory_left_by_control_groups(tmp_path, version, counted, free):
    files = getattr(memory, version)
    files = memory.GroupFiles(tmp_path, files.limit, files.used, files.cached)
    for group, limit in (("", "max"), ("batch", "110"), ("batch/job", "1000")):
        folder = tmp_path / group
        folder.mkdir(exist_ok=True)
        (folder / files.limit).write_text(f"{limit}\n")
        (folder / files.used).write_text("60\n")
        (folder / "memory.stat").write_text(f"anon 30\n{counted} 20\n")
    assert min(memory.group_rooms(files, "/batch/job")) == free
    assert min(memory.group_rooms(files, "/elsewhere"), default=None) is None


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on data counts mapped files on Linux alone")
@pytest.mark.parametrize(
    ("width", "layers", "options"),
    [
        pytest.param(512, 24, {"tokens": 300, "attention": False}, id="250MB"),
        pytest.param(1024, 36, {"tokens": 1500, "attention": True}, id="1500MB", marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_four_times_larger_than_the_memory(tmp_path, width, layers, options):
    folder = save_llama(tmp_path / "model", hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers)
    limit = (folder / "model.safetensors").stat().st_size // 4
    small, limited = save_llama(tmp_path / "small"), tmp_path / "limited.json"
    arguments = [limit, small, folder, limited, "--tokens", options["tokens"]]
    child = subprocess.run(
        [sys.executable, LIMITED, *map(str, arguments), *([] if options["attention"] else ["--no-attention"])],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert child.returncode == 0, child.stderr
    assert child.stderr.count("do not fit into memory") == 1
    assert int(child.stdout.split("grown ")[1]) < limit
    whole = profile_model(load(folder), **options)
    assert facts(read_profile(limited)) == facts(whole)
    if not options["attention"]:
        assert whole.dims == (SINK_DIM,)
