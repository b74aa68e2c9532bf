"""Two witnesses: what activations showed, held against what the weights say."""

from typing import Any

from sinkscope.errors import InputError
from sinkscope.profile.schema import Profile
from sinkscope.weights.prediction import Prediction


def compare(profile: Profile, prediction: Prediction) -> dict[str, Any]:
    """Hold a profile against a prediction from weights.

    Parameters
    ----------
    profile : Profile
        Measured or published.
    prediction : Prediction
        From the weights of the same backbone.

    Returns
    -------
    dict
        Ready for JSON: `agrees`, `only_activations` and `only_weights` (dimensions that one of the two names),
        `dimensions` (for every dimension of the profile its rank and ratio in the weights, and the layers where its row
        leads), `predicted`, and `sentence`.

    Raises
    ------
    InputError
        If the hidden sizes differ: weights of another backbone.
    """
    ours, theirs = profile.backbone.hidden_size, int(prediction.backbone["hidden_size"])
    if ours != theirs:
        raise InputError(
            f"profile {profile.name} is of a backbone of width {ours}, the weights of one of width {theirs}; name the "
            "model that the profile is for"
        )
    named, predicted = set(profile.dims), set(prediction.dims)
    alone, unseen = sorted(named - predicted), sorted(predicted - named)
    return {
        "agrees": named == predicted,
        "sentence": _sentence(sorted(named & predicted), alone, unseen, prediction),
        "only_activations": alone,
        "only_weights": unseen,
        "predicted": [entry.to_dict() for entry in prediction.sink_dimensions],
        "dimensions": [prediction.evidence(dim) for dim in profile.dims],
    }


def with_weights(profile: Profile, prediction: Prediction) -> Profile:
    """The profile with `evidence.weights`, and a note where weights and activations disagree."""
    result = compare(profile, prediction)
    evidence = profile.evidence.model_copy(update={"weights": result})
    if not result["agrees"]:
        evidence = evidence.model_copy(update={"notes": [*evidence.notes, f"weights: {result['sentence']}"]})
    return profile.model_copy(update={"evidence": evidence})


def _sentence(both: list[int], alone: list[int], unseen: list[int], prediction: Prediction) -> str:
    if not (both or alone or unseen):
        return "neither the profile nor the weights name a sink dimension"
    parts = []
    if both:
        parts.append(f"the weights name {_dims(both)}, too")
    for dim in alone:
        seen = prediction.evidence(dim)
        parts.append(f"{dim} is not named by the weights (rank {seen['rank']}, {seen['ratio']} times the median)")
    if unseen:
        parts.append(f"the weights also name {_dims(unseen)}, which the profile does not")
    return "; ".join(parts)


def _dims(dims: list[int]) -> str:
    return ", ".join(map(str, dims))
