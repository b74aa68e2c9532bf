"""Token tables, and which tokens trigger sinks."""

import numpy as np
from numpy.typing import NDArray

from benchmarks.known_truth.case import Case, Tokens

BOS, IMAGE = 0, 1
DELIMITERS = {2: ".", 3: "\n", 4: ",", 5: ";", 6: " "}
FREQUENT = {10: "the", 11: "of", 12: "and", 13: "to", 14: "in", 15: "A"}
CONTENT = {20: "1", 21: "7", 22: "(", 23: '"', 24: "{"}
WORDS = range(30, 400)
TEXT = {BOS: "<s>", IMAGE: "<image>"} | DELIMITERS | FREQUENT | CONTENT | {word: f"word{word}" for word in WORDS}

KIND_SPECIAL, KIND_VISUAL = 1, 2
MOST_SINKS = 5
"""Attention of a query sums to 1, so few tokens of a sample can each draw a good part of it."""


def make_tokens(generator: np.random.Generator, case: Case) -> Tokens:
    """Samples of unequal length with words, delimiters, content tokens and, where asked for, an image."""
    lengths = np.maximum(8, np.round(case.length * generator.uniform(0.75, 1.25, case.samples))).astype(int)
    foreign = generator.random(case.samples) < generator.uniform(0, 0.25)
    zipf = 1.0 / (np.arange(len(WORDS)) + 3.0)
    pools = [
        (np.array([*DELIMITERS]), np.array([4, 3, 3, 1, 2.0]), 0.11),
        (np.array([*FREQUENT]), np.array([5, 3, 3, 2, 2, 1.0]), 0.16),
        (np.array([*CONTENT]), np.ones(len(CONTENT)), 0.05),
        (np.array([*WORDS]), zipf, 0.68),
    ]
    choices = np.concatenate([pool for pool, _, _ in pools])
    chances = np.concatenate([weight / weight.sum() * part for _, weight, part in pools])
    visual = "visual" in case.triggers
    identifiers, kinds = [], []
    for length in lengths:
        row = generator.choice(choices, size=length, p=chances).astype(np.int32)
        kind = np.zeros(length, np.uint8)
        if case.bos:
            row[0], kind[0] = BOS, KIND_SPECIAL
        if visual:
            start = 2 + int(case.bos)
            span = slice(start, start + max(4, int(0.35 * length)))
            row[span], kind[span] = IMAGE, KIND_VISUAL
        identifiers.append(row)
        kinds.append(kind)
    sample = np.repeat(np.arange(case.samples, dtype=np.int32), lengths)
    return Tokens(
        np.concatenate(identifiers),
        np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
        sample,
        np.concatenate(kinds),
        foreign[sample],
        TEXT,
    )


def trigger_tokens(generator: np.random.Generator, tokens: Tokens, trigger: str) -> NDArray[np.int64]:
    """Rows of the tokens that one kind of trigger makes sinks.

    Single occurrences are those after the first 4 tokens, so that no other trigger takes their place.
    """
    if trigger == "first":
        return np.flatnonzero(tokens.position == 0)
    text = (tokens.kind == 0) & (tokens.position > 0)
    if trigger in {"delimiters", "words", "content"}:
        pool = {"delimiters": DELIMITERS, "words": FREQUENT, "content": CONTENT}[trigger]
        return np.flatnonzero(text & (tokens.id == generator.choice([*pool])))
    rows: list[int] = []
    pool = DELIMITERS if trigger == "delimiter" else FREQUENT
    named = generator.permutation([*pool][:3])[: int(generator.integers(1, 3))]
    background = int(generator.integers(2, 4))
    for sample in range(int(tokens.sample[-1]) + 1):
        inside = tokens.sample == sample
        if trigger == "visual":
            visual = np.flatnonzero(inside & (tokens.kind == KIND_VISUAL))
            rows += generator.choice(visual, size=min(background, len(visual)), replace=False).tolist()
        else:
            for identifier in named:
                found = np.flatnonzero(inside & text & (tokens.id == identifier) & (tokens.position > 4))
                rows += found[:1].tolist()
    return np.array(sorted(rows), np.int64)


def sink_tokens(generator: np.random.Generator, case: Case, tokens: Tokens) -> dict[str, NDArray[np.int64]]:
    """Rows of every trigger's sink tokens; with attention at most `MOST_SINKS` a sample, first come first served."""
    found = {trigger: trigger_tokens(generator, tokens, trigger) for trigger in case.triggers}
    if case.rare:
        for trigger in case.triggers[1:] or case.triggers:
            kept = generator.random(case.samples) >= case.rare
            found[trigger] = found[trigger][kept[tokens.sample[found[trigger]]]]
    if not case.attention:
        return found
    count = np.zeros(int(tokens.sample[-1]) + 1, int)
    fewer: dict[str, NDArray[np.int64]] = {}
    for trigger, rows in found.items():
        mine = []
        for row in rows.tolist():
            if count[tokens.sample[row]] < MOST_SINKS:
                count[tokens.sample[row]] += 1
                mine.append(row)
        fewer[trigger] = np.array(mine, np.int64)
    return fewer
