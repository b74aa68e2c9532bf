"""What profiling and VAR cost beside the plain model, on the demo models, as ratios within one run.

    python -m benchmarks.overhead [--repeats 5]

Plain and measured passes alternate, so that a machine that slows down slows both; every figure is the median of the
ratios of neighbours. Times are process CPU times, which other work on the machine disturbs least.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

import sinkscope
from benchmarks.timing import seconds
from sinkscope.backbone.loading import LoadedModel
from sinkscope.calibration import default_texts
from sinkscope.capture.encode import model_inputs
from sinkscope.capture.planning import make_plan
from sinkscope.capture.runner import forward, run
from sinkscope.capture.settings import CaptureSettings
from sinkscope.demo.pictures import generate


def ratios(plain: Callable[[], object], measured: Callable[[], object], repeats: int) -> dict[str, float]:
    """Median ratio of measured to plain, and its range."""
    plain()
    measured()
    found = [seconds("cpu", measured) / seconds("cpu", plain) for _ in range(repeats)]
    return {"median": statistics.median(found), "least": min(found), "most": max(found)}


def profiling(loaded: LoadedModel, attention: bool, repeats: int, samples: int = 16) -> dict[str, float]:
    """A capture run, all of it, against the same batches through the plain model."""
    texts = default_texts()[:samples]
    settings = CaptureSettings(attention=attention)
    plan = make_plan(loaded, texts, settings, "measured" if attention else "not requested", "benchmark")
    batches = [model_inputs(loaded, [plan.samples[sample] for sample in batch])[0] for batch in plan.batches]

    def plain() -> None:
        with torch.inference_mode():
            for inputs in batches:
                forward(loaded.model, inputs)

    def measured() -> None:
        with tempfile.TemporaryDirectory() as folder:
            run(loaded, texts, Path(folder) / "run.h5", settings)

    return ratios(plain, measured, repeats)


def redistribution(loaded: LoadedModel, tokens: int, repeats: int) -> dict[str, float]:
    """Greedy generation of `tokens` tokens about a picture, with VAR against without."""
    profile = sinkscope.load_profile("sinkscope-demo-lmm")
    scene = generate(777, 1)[0]
    content = [{"type": "image"}, {"type": "text", "text": scene.questions[0].text}]
    text = loaded.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = loaded.processor(text=text, images=scene.image, return_tensors="pt")

    def plain() -> None:
        loaded.model.generate(**inputs, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False)

    def measured() -> None:
        with sinkscope.var(loaded.model, profile):
            plain()

    return ratios(plain, measured, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    text, picture = sinkscope.load("demo:llm"), sinkscope.load("demo:lmm")
    print(
        json.dumps(
            {
                "threads": torch.get_num_threads(),
                "profile, statistics and store": profiling(text, False, repeats),
                "profile, with attention of all samples": profiling(text, True, repeats),
                "VAR, 1 token (prefill)": redistribution(picture, 1, repeats),
                "VAR, 32 tokens": redistribution(picture, 32, repeats),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
