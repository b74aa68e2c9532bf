"""Measure the demo models on held-out pictures: ``python -m benchmarks.demo_model``.

Accuracy and visual sinks are measured with transformers and numpy alone. Nothing of the profiler is used, so that
the profiler can be judged against these figures.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoProcessor, LlavaForConditionalGeneration

from sinkscope.demo.assemble import demo_lmm_folder
from sinkscope.demo.pictures import QUESTION_TYPES, Scene, generate
from sinkscope.demo.recipe import FIRST_HELD_OUT_SEED, IMAGE_TOKEN_ID

SINK_DIMENSION = 507
TAU = 20.0
HELD_OUT_SEED = FIRST_HELD_OUT_SEED + 500
BATCH = 25
RESULTS = Path(__file__).parent / "results" / "demo_model.json"
CARD = Path(__file__).parents[1] / "docs" / "demo_model.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def load(folder: Path, attention: str) -> tuple[Any, Any]:
    """Load a model folder in float32; ``attention`` is transformers' name of the attention implementation."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
    return model.eval(), AutoProcessor.from_pretrained(folder)


def message(question: str, image: bool = True) -> list[dict[str, Any]]:
    """Return one user turn in the form that chat templates take."""
    parts = [{"type": "image"}] if image else []
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def answers(model: Any, processor: Any, questions: Sequence[str], scenes: Sequence[Scene] | None) -> list[str]:
    """Answer greedily, one picture a question, or without pictures where ``scenes`` is None."""
    said: list[str] = []
    for start in range(0, len(questions), BATCH):
        asked = questions[start : start + BATCH]
        texts = [
            processor.apply_chat_template(message(one, scenes is not None), add_generation_prompt=True) for one in asked
        ]
        images = [scene.image for scene in scenes[start : start + BATCH]] if scenes is not None else None
        inputs = processor(text=texts, images=images, return_tensors="pt", padding=True)
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=5)
        said += processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return said


def most_frequent_answers() -> dict[str, str]:
    """Return each question type's most frequent answer over the first training pictures."""
    scenes = generate(0, 2000)
    return {
        kind: Counter(scene.questions[index].answer for scene in scenes).most_common(1)[0][0]
        for index, kind in enumerate(QUESTION_TYPES)
    }


def measure_accuracy(folder: Path, scenes: Sequence[Scene]) -> dict[str, dict[str, float]]:
    """Return exact-match accuracy by question type, with three blind baselines."""
    model, processor = load(folder, "sdpa")
    frequent = most_frequent_answers()
    others = [*scenes[1:], scenes[0]]
    result = {}
    for index, kind in enumerate(QUESTION_TYPES):
        questions = [scene.questions[index].text for scene in scenes]
        truth = [scene.questions[index].answer for scene in scenes]

        def share(said: Sequence[str], truth: Sequence[str] = truth) -> float:
            return float(np.mean([one == right for one, right in zip(said, truth, strict=True)]))

        result[kind] = {
            "accuracy": share(answers(model, processor, questions, scenes)),
            "other_picture": share(answers(model, processor, questions, others)),
            "no_picture": share(answers(model, processor, questions, None)),
            "most_frequent_answer": share([frequent[kind]] * len(truth)),
        }
        print(kind, result[kind], flush=True)
    return result


def measure_sinks(folder: Path, scenes: Sequence[Scene]) -> dict[str, Any]:
    """Return, for the state entering each layer, how often visual and text tokens are sinks and what they draw."""
    model, processor = load(folder, "eager")
    by_layer: list[list[dict[str, float]]] = []
    for number, scene in enumerate(scenes):
        question = scene.questions[number % len(QUESTION_TYPES)].text
        text = processor.apply_chat_template(message(question), add_generation_prompt=True)
        inputs = processor(text=text, images=scene.image, return_tensors="pt")
        with torch.inference_mode():
            output = model(**inputs, output_hidden_states=True, output_attentions=True)
        visual = (inputs["input_ids"][0] == IMAGE_TOKEN_ID).numpy()
        background = np.zeros_like(visual)
        background[visual] = scene.patch_owners() < 0
        by_layer.append(
            [
                one_layer(state[0].double().numpy(), attention[0].double().numpy(), visual, background)
                for state, attention in zip(output.hidden_states[:-1], output.attentions, strict=True)
            ]
        )
    layers = [summary([picture[layer] for picture in by_layer]) for layer in range(len(by_layer[0]))]
    # The band is where the model has them: layers in which nearly every picture has a visual sink token.
    band = [layer for layer, entry in enumerate(layers) if (entry["pictures_with_visual_sink"] or 0.0) >= 0.95]
    anywhere = [any(layer["visual_sinks"] > 0 for layer in picture) for picture in by_layer]
    throughout = [bool(band) and all(picture[layer]["visual_sinks"] > 0 for layer in band) for picture in by_layer]
    return {
        "dimension": SINK_DIMENSION,
        "tau": TAU,
        "pictures": len(scenes),
        "band": band,
        "pictures_with_visual_sink_in_any_layer": float(np.mean(anywhere)),
        "pictures_with_visual_sink_in_all_layers_of_band": float(np.mean(throughout)),
        "layers": layers,
    }


def one_layer(state: np.ndarray, attention: np.ndarray, visual: np.ndarray, background: np.ndarray) -> dict[str, float]:
    """Measure one picture in one layer.

    Parameters
    ----------
    state : ndarray, shape [T, D]
        Hidden state entering the layer.
    attention : ndarray, shape [heads, T, T]
        Attention weights of the layer, rows are queries.
    visual, background : ndarray of bool, shape [T]
        Visual tokens, and those of them that show background.
    """
    phi = np.abs(state[:, SINK_DIMENSION]) / np.sqrt((state**2).mean(axis=1))
    sinks = (phi >= TAU) & visual
    others = visual & ~sinks
    queries = np.arange(len(visual)) > np.flatnonzero(visual)[-1]
    drawn = attention[:, queries].mean(axis=(0, 1))
    return {
        "visual_sinks": float(sinks.sum()),
        "background_sinks": float((sinks & background).sum()),
        "sinks_led_by_dimension": float((np.abs(state[sinks]).argmax(axis=1) == SINK_DIMENSION).sum()),
        "text_sinks": float(((phi >= TAU) & ~visual).sum()),
        "largest_visual_phi": float(phi[visual].max()),
        "median_visual_phi": float(np.median(phi[visual])),
        "largest_visual_magnitude": float(np.abs(state[visual, SINK_DIMENSION]).max()),
        "attention_of_visual_sinks": float(drawn[sinks].sum()),
        "attention_of_a_visual_sink": float(drawn[sinks].mean()) if sinks.any() else float("nan"),
        "attention_of_another_visual_token": float(drawn[others].mean()),
        "attention_of_first_token": float(drawn[0]),
    }


def summary(pictures: Sequence[dict[str, float]]) -> dict[str, float | None]:
    """Summarise one layer over pictures; what needs a visual sink is None where no picture has one."""
    columns = {name: np.asarray([picture[name] for picture in pictures]) for name in pictures[0]}
    sinks = columns["visual_sinks"]
    having = sinks > 0
    result: dict[str, float | None] = {
        "pictures_with_visual_sink": float(having.mean()),
        "visual_sinks_per_picture": float(sinks.mean()),
        "text_sinks_per_picture": float(columns["text_sinks"].mean()),
        "largest_visual_phi_median": float(np.median(columns["largest_visual_phi"])),
        "median_visual_phi_median": float(np.median(columns["median_visual_phi"])),
        "largest_visual_magnitude_median": float(np.median(columns["largest_visual_magnitude"])),
        "attention_of_first_token": float(columns["attention_of_first_token"].mean()),
        "attention_of_visual_sinks": float(columns["attention_of_visual_sinks"].mean()),
        "sinks_on_background": None,
        "sinks_led_by_dimension": None,
        "attention_ratio_median": None,
        "attention_ratio_5th_percentile": None,
    }
    if having.any():
        one = columns["attention_of_a_visual_sink"][having]
        ratio = one / columns["attention_of_another_visual_token"][having]
        result |= {
            "sinks_on_background": float(columns["background_sinks"].sum() / sinks.sum()),
            "sinks_led_by_dimension": float(columns["sinks_led_by_dimension"].sum() / sinks.sum()),
            "attention_ratio_median": float(np.median(ratio)),
            "attention_ratio_5th_percentile": float(np.percentile(ratio, 5)),
        }
    return result


def number(value: float | None, digits: int = 2) -> str:
    """Format a figure of the card."""
    return "-" if value is None else f"{value:.{digits}f}"


def tables(result: dict[str, Any]) -> str:
    """Return the generated part of the model card."""
    lines = [
        f"Held-out pictures (seed {result['seed']}), {result['n']} questions a type, greedy, exact match:",
        "",
        "| question | with its picture | another scene's picture | no picture | most frequent answer |",
        "|---|---|---|---|---|",
    ]
    for kind, row in result["accuracy"].items():
        values = [row[name] for name in ("accuracy", "other_picture", "no_picture", "most_frequent_answer")]
        lines.append(f"| {kind} | {' | '.join(number(value, 3) for value in values)} |")
    for name, title in (("sinks", "Demo model"), ("control_sinks", "Negative control")):
        sinks = result[name]
        band = f"layers {sinks['band'][0]} to {sinks['band'][-1]}" if sinks["band"] else "none"
        lines += [
            "",
            f"{title}: pictures with a visual sink token (dimension {SINK_DIMENSION}, phi at least {TAU:.0f}) in any "
            f"layer: {sinks['pictures_with_visual_sink_in_any_layer']:.3f} of {sinks['pictures']}; layers where at "
            f"least 0.95 of the pictures have one: {band}; pictures that have one in each of these layers: "
            f"{number(sinks['pictures_with_visual_sink_in_all_layers_of_band'], 3)}.",
            "",
            "| state entering layer | pictures with a visual sink | visual sinks a picture | on background | largest "
            "visual phi | median visual phi | attention: a sink over another visual token (median, 5th percentile) | "
            "attention: all visual sinks | attention: first token | text sinks a picture |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for layer, entry in enumerate(sinks["layers"]):
            median, low = entry["attention_ratio_median"], entry["attention_ratio_5th_percentile"]
            cells = [
                str(layer),
                number(entry["pictures_with_visual_sink"], 3),
                number(entry["visual_sinks_per_picture"]),
                number(entry["sinks_on_background"], 3),
                number(entry["largest_visual_phi_median"], 1),
                number(entry["median_visual_phi_median"], 1),
                "-" if median is None else f"{number(median, 1)}, {number(low, 1)}",
                number(entry["attention_of_visual_sinks"]),
                number(entry["attention_of_first_token"]),
                number(entry["text_sinks_per_picture"]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def update_card(card: Path, generated: str) -> None:
    """Replace the generated part of the model card."""
    text = card.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{card} has no part between {BEGIN} and {END}")
    card.write_text(pattern.sub(lambda _: f"{BEGIN}\n{generated}\n{END}", text), encoding="utf-8")


def main() -> None:
    """Measure both models, write the JSON file and update the card."""
    parser = argparse.ArgumentParser(description="Measure the demo models on held-out pictures.")
    parser.add_argument("--n", type=int, default=200, help="pictures, and questions of each type")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--json", type=Path, default=RESULTS, help="result file")
    parser.add_argument("--card", type=Path, default=CARD, help="model card to update")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    scenes = generate(HELD_OUT_SEED, options.n)
    demo, control = demo_lmm_folder(), demo_lmm_folder(control=True)
    result = {
        "n": options.n,
        "seed": HELD_OUT_SEED,
        "dtype": "float32",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__},
        "sinks": measure_sinks(demo, scenes),
        "control_sinks": measure_sinks(control, scenes),
        "accuracy": measure_accuracy(demo, scenes),
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    update_card(options.card, tables(result))
    print(tables(result))


if __name__ == "__main__":
    main()
