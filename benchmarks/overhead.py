"""What VAR costs beside the plain model on the demo model, as ratios within one run.

    python -m benchmarks.overhead [--repeats 5]

Plain and measured passes take turns, so that a machine that slows down slows both; every figure is the median of the
ratios of neighbours. Times are process CPU times, which other work on the machine disturbs least. What profiling costs
is measured by `benchmarks.profile`.
"""

import argparse
import json
from functools import partial

import torch

import sinkscope
from benchmarks.timing import by_turns, seconds
from sinkscope.backbone.loading import LoadedModel
from sinkscope.demo.pictures import generate


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

    forms = {"plain": partial(seconds, "cpu", plain), "VAR": partial(seconds, "cpu", measured)}
    found: dict[str, float] = by_turns(forms, repeats)["VAR"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    picture = sinkscope.load("demo:lmm")
    results = {f"VAR, {tokens} tokens": redistribution(picture, tokens, repeats) for tokens in (1, 32)}
    print(json.dumps({"threads": torch.get_num_threads(), **results}, indent=2))


if __name__ == "__main__":
    main()
