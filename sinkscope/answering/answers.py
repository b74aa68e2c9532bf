"""Answers of one model to one question, with VAR off and on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from sinkscope.answering.inputs import build_inputs, check_answerable, room_to_answer
from sinkscope.backbone.loading import LoadedModel
from sinkscope.backbone.visual import visual_mask
from sinkscope.profile.schema import Profile

if TYPE_CHECKING:
    from sinkscope.redistribution.summary import LayerSummary


@dataclass(frozen=True)
class Answers:
    """The answers to one question.

    Attributes
    ----------
    plain : str or None
        Without VAR; None where it was not asked for.
    var : str
        With VAR.
    visual_tokens, prompt_tokens : int
        Visual tokens, and all tokens of the prompt.
    p, rho : float
        As used.
    layers : tuple of LayerSummary
        What VAR did in each layer.
    inputs : BatchFeature
        What the model was given.
    var_ids : LongTensor [1, T]
        The prompt and VAR's answer.
    """

    plain: str | None
    var: str
    visual_tokens: int
    prompt_tokens: int
    p: float
    rho: float
    layers: tuple["LayerSummary", ...]
    inputs: Any = field(repr=False, compare=False)
    var_ids: Tensor = field(repr=False, compare=False)

    @property
    def changed(self) -> bool | None:
        """Whether VAR changed the answer; None where only one was generated."""
        return None if self.plain is None else self.plain != self.var

    def to_dict(self) -> dict[str, Any]:
        """All fields but the tensors, ready for JSON."""
        return {
            "answers": {"plain": self.plain, "var": self.var},
            "changed": self.changed,
            "visual_tokens": self.visual_tokens,
            "prompt_tokens": self.prompt_tokens,
            "p": self.p,
            "rho": self.rho,
            "layers": [layer.to_dict() for layer in self.layers],
        }


def generate(loaded: LoadedModel, inputs: Any, max_new_tokens: int) -> Tensor:
    """The prompt and the greedy answer to `inputs`: LongTensor [1, T]."""
    tokenizer = loaded.tokenizer
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    model: Any = loaded.model
    ids: Tensor = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=padding)
    return ids


def answer_text(loaded: LoadedModel, inputs: Any, ids: Tensor) -> str:
    """The answer in `ids`, which `generate` gave for `inputs`, without special tokens."""
    text: str = loaded.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text.strip()


def answer(
    loaded: LoadedModel,
    profile: Profile,
    images: Sequence[Image.Image],
    prompt: str,
    *,
    p: float | None = None,
    rho: float | None = None,
    max_new_tokens: int = 64,
    compare: bool = True,
    raw: bool = False,
) -> Answers:
    """Answer one question about some pictures with VAR, and without it for comparison.

    Parameters
    ----------
    profile : Profile
        Of the model's backbone.
    p, rho : float, optional
        As in `sinkscope.var`; the profile's by default.
    compare : bool
        Also answer without VAR.
    max_new_tokens : int
        The answer is cut after so many tokens, or where the model's context ends.
    images, prompt, raw
        As in `build_inputs`.

    Raises
    ------
    InputError, ProfileError, UnsupportedModelError
        As `build_inputs` and `sinkscope.var`; `InputError` also if the prompt is longer than the model's context.
    """
    from sinkscope.redistribution.applicator import var

    check_answerable(loaded)
    run = var(loaded.model, profile, p=p, rho=rho)
    inputs = build_inputs(loaded, images, prompt, raw=raw)
    room = room_to_answer(loaded, inputs, max_new_tokens)
    plain = answer_text(loaded, inputs, generate(loaded, inputs, room)) if compare else None
    with run:
        var_ids = generate(loaded, inputs, room)
    ids = inputs["input_ids"]
    return Answers(
        plain=plain,
        var=answer_text(loaded, inputs, var_ids),
        visual_tokens=int(visual_mask(loaded.anatomy, ids).sum()),
        prompt_tokens=int(ids.shape[1]),
        p=run.config.p,
        rho=run.config.rho,
        layers=tuple(run.summary()),
        inputs=inputs,
        var_ids=var_ids,
    )


def choose_profile(loaded: LoadedModel) -> Profile:
    """The profile in the registry that fits a loaded model: by its id, else by its backbone.

    Raises
    ------
    InputError
        If none fits, or several do; the message names them.
    """
    from sinkscope.registry import list_profiles, only_match

    # A user's profile comes first and hides the packaged one of the same name.
    profiles: dict[str, Profile] = {}
    for entry in list_profiles():
        if entry.profile is not None:
            profiles.setdefault(entry.name, entry.profile)
    named = [profile for profile in profiles.values() if loaded.model_id in profile.models]
    if len(named) == 1:
        return named[0]
    return only_match(loaded.anatomy.fingerprint(), named or profiles.values())
