"""Edits of hidden states, which of them are made, and the hook that puts them into a model."""

import numpy as np
import pytest
import torch
from causal_models import LAYERS, WIDTH, make_profile, make_texts

from sinkscope.backbone.hooks import edited_state, entering_states
from sinkscope.backbone.loading import LoadedModel
from sinkscope.causal.design import Choice, Comparison, Edit, compare, edited_layers
from sinkscope.causal.edits import copy, exchange, largest_dims, moved_energy, neutralise, ordinary_dims, transplant
from sinkscope.causal.settings import CausalSettings
from sinkscope.errors import InputError, UnsupportedModelError


@pytest.fixture
def states() -> torch.Tensor:
    return torch.randn(7, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_exchange_moves_values_and_keeps_everything_else(states: torch.Tensor, dtype: torch.dtype) -> None:
    states = states.to(dtype)
    before = states.clone()
    edited = exchange(states, [1, 4], [3, 5], [8, 0])
    assert torch.equal(states, before)
    assert torch.equal(edited[[0, 2, 3, 5, 6]], states[[0, 2, 3, 5, 6]])
    assert torch.equal(edited[[1, 4]].sort(-1).values, states[[1, 4]].sort(-1).values)
    assert torch.equal(edited[1, [3, 5, 8, 0]], states[1, [8, 0, 3, 5]])
    # The same values in another order: their norm differs by rounding of the sum alone, and not after sorting.
    norms = [torch.linalg.vector_norm(rows.float().abs().sort(-1).values, dim=-1) for rows in (edited, states)]
    assert torch.equal(*norms)
    assert torch.equal(exchange(edited, [1, 4], [3, 5], [8, 0]), states)
    assert edited.dtype == dtype


@pytest.mark.parametrize(("dims", "partners"), [([1], []), ([1, 1], [2, 3]), ([1, 2], [2, 3]), ([1], [1])])
def test_an_exchange_refuses_dimensions_that_collide(
    states: torch.Tensor, dims: list[int], partners: list[int]
) -> None:
    with pytest.raises(InputError):
        exchange(states, [0], dims, partners)


def test_a_copy_leaves_the_values_where_they_are_too(states: torch.Tensor) -> None:
    copied, exchanged = copy(states, [1], [3, 5], [8, 0]), exchange(states, [1], [3, 5], [8, 0])
    assert torch.equal(copied[1, [8, 0]], states[1, [3, 5]])
    assert torch.equal(copied[1, [3, 5]], states[1, [3, 5]])
    assert (copied != exchanged).nonzero().tolist() == [[1, 3], [1, 5]]


def test_neutralising_sets_values(states: torch.Tensor) -> None:
    edited = neutralise(states, [2], [0, 7], [0.0, -1.5])
    assert edited[2, [0, 7]].tolist() == [0.0, -1.5]
    changed = edited != states
    assert changed.nonzero().tolist() == [[2, 0], [2, 7]]
    assert torch.equal(neutralise(states, [2], [], []), states)
    with pytest.raises(InputError):
        neutralise(states, [2], [0], [])


def test_a_transplant_keeps_only_the_dimensions(states: torch.Tensor) -> None:
    edited = transplant(states, [0, 3], [2, 6], donor=5)
    for row in (0, 3):
        assert torch.equal(edited[row, [2, 6]], states[row, [2, 6]])
        others = [dim for dim in range(12) if dim not in (2, 6)]
        assert torch.equal(edited[row, others], states[5, others])
    assert torch.equal(transplant(states, [1], [], donor=5)[1], states[5])


def test_ordinary_dimensions_leave_out_what_is_known_or_large() -> None:
    states = np.ones((2, 10), np.float32)
    states[0, 3], states[1, 8], states[:, 0] = -50.0, 20.0, 5.0
    assert ordinary_dims(states, [6], largest=2).tolist() == [1, 2, 4, 5, 7, 9]
    assert largest_dims(states, [0], 2) == [3, 8]
    assert largest_dims(states, range(9), 5) == [9]
    assert moved_energy(np.array([[3.0, 4.0]], np.float32), [0]) == pytest.approx(0.36)
    assert moved_energy(np.zeros((1, 2), np.float32), [0]) == 0.0


def test_the_comparisons_of_a_set_of_two(llama: LoadedModel) -> None:
    profile = make_profile(llama, 5, 20, 30)
    lines = compare(profile, [5, 20], [9, 11])
    exchanged = [(line.group, line.dims, line.count) for line in lines if line.kind == "exchange"]
    assert exchanged == [
        ("found", (5, 20), 2),
        ("found", (5,), 1),
        ("found", (20,), 1),
        ("found elsewhere", (30,), 1),
        ("random", None, 1),
        ("random", None, 2),
        ("next largest", (9,), 1),
        ("next largest", (11,), 1),
        ("next largest", (9, 11), 2),
    ]
    copied = [(line.group, line.dims, line.count) for line in lines if line.kind == "copy"]
    assert copied == [entry for entry in exchanged if entry[0] != "random"]
    beside = [(line.group, line.kind) for line in lines if line.kind not in ("exchange", "copy")]
    assert beside == [
        ("found", "zero"),
        ("found", "typical"),
        ("found", "transplant"),
        ("found", "transplant elsewhere"),
        ("next largest", "transplant"),
        ("ordinary", "transplant"),
    ]


def _draw(group: str, kind: str, dims: tuple[int, ...] | None, count: int, *seed: int) -> list[Edit]:
    choice = Choice(np.arange(10, 40), np.array([3, 4]), {5: 1.5}, (0, *seed))
    return choice.draw(Comparison(group, kind, dims, count), 20)


def test_partners_are_ordinary_seeded_and_vary() -> None:
    edits = _draw("found", "exchange", (5, 12), 2)
    assert edits == _draw("found", "exchange", (5, 12), 2)
    assert edits != _draw("found", "exchange", (5, 12), 2, 1)
    assert {edit.dims for edit in edits} == {(5, 12)}
    partners = {partner for edit in edits for partner in edit.partners}
    assert partners <= set(range(10, 40)) - {12}
    assert len(partners) > 10
    for edit in _draw("random", "exchange", None, 3):
        assert len({*edit.dims, *edit.partners}) == 6
        assert {*edit.dims, *edit.partners} <= set(range(10, 40))


def test_edits_of_the_same_dimensions_differ_in_one_thing_only() -> None:
    exchanged = _draw("found", "exchange", (5, 12), 2)[0]
    (copied,) = _draw("found", "copy", (5, 12), 2)
    (planted,) = _draw("found", "transplant", (5, 12), 2)
    (elsewhere,) = _draw("found", "transplant elsewhere", (5, 12), 2)
    (bare,) = _draw("ordinary", "transplant", (), 0)
    assert exchanged.partners == copied.partners == elsewhere.partners
    assert planted.donor == elsewhere.donor == bare.donor
    assert planted.partners == bare.partners == ()
    assert [edit.values for edit in _draw("found", "typical", (5,), 1)] == [(1.5,)]
    assert [edit.values for edit in _draw("found", "zero", (5,), 1)] == [(0.0,)]


def test_a_transplant_elsewhere_has_the_values_of_one_in_another_order() -> None:
    wide = torch.randn(7, 40, generator=torch.Generator().manual_seed(1))
    (planted,) = _draw("found", "transplant", (5, 12), 2)
    (elsewhere,) = _draw("found", "transplant elsewhere", (5, 12), 2)
    first, second = planted.apply(wide, [1]), elsewhere.apply(wide, [1])
    assert torch.equal(first[1].sort().values, second[1].sort().values)
    assert torch.equal(second[1, list(elsewhere.partners)], wide[1, [5, 12]])
    assert torch.equal(first[1, [5, 12]], wide[1, [5, 12]])


@pytest.mark.parametrize(
    ("first", "last", "layers", "expected"),
    [
        (3, 10, 2, [3, 7]),
        (12, 29, 3, [12, 18, 24]),
        (4, 4, 2, [4]),
        (28, 30, 2, [28, 29]),
        (30, 30, 2, []),
        (0, 29, 1, [0]),
    ],
)
def test_layers_spread_through_a_band(first: int, last: int, layers: int, expected: list[int]) -> None:
    assert edited_layers(first, last, 30, CausalSettings(layers=layers)) == expected


@pytest.mark.parametrize(
    "wrong", [{"draws": 0}, {"texts": 0, "pictures": 0}, {"max_length": 40}, {"fall": 1.0}, {"resamples": 10}]
)
def test_settings_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        CausalSettings(**wrong)


def _seen(loaded: LoadedModel) -> tuple[list[torch.Tensor], torch.Tensor]:
    ids = loaded.tokenizer(make_texts(1)[0].text, return_tensors="pt").input_ids
    found: list[torch.Tensor] = []
    with torch.no_grad(), entering_states(loaded.model, loaded.anatomy, lambda layer, state: found.append(state)):
        logits = loaded.model(input_ids=ids).logits
    return found, logits


def test_an_edited_state_enters_its_layer_and_the_ones_after(llama: LoadedModel) -> None:
    plain, logits = _seen(llama)
    with edited_state(llama.model, llama.anatomy, 2, lambda state: state * 2):
        edited, changed = _seen(llama)
    for layer in (0, 1):
        assert torch.equal(edited[layer], plain[layer])
    assert torch.equal(edited[2], 2 * plain[2])
    assert not torch.allclose(edited[3], plain[3])
    assert not torch.allclose(changed, logits)
    assert torch.equal(_seen(llama)[1], logits)


def test_more_samples_may_leave_than_came(llama: LoadedModel) -> None:
    _, logits = _seen(llama)
    with edited_state(llama.model, llama.anatomy, 3, lambda state: torch.cat([state, state * 2, state])):
        _, wide = _seen(llama)
    assert wide.shape[0] == 3
    torch.testing.assert_close(wide[[0]], logits)
    torch.testing.assert_close(wide[0], wide[2])


def test_the_edit_is_gone_after_an_error(llama: LoadedModel) -> None:
    _, logits = _seen(llama)

    def fail(state: torch.Tensor) -> torch.Tensor:
        raise KeyError("an edit that fails")

    with pytest.raises(KeyError), edited_state(llama.model, llama.anatomy, 0, fail):
        _seen(llama)
    assert all(not layer._forward_pre_hooks for layer in llama.model.model.layers)
    assert torch.equal(_seen(llama)[1], logits)


def test_there_is_no_layer_after_the_last(llama: LoadedModel) -> None:
    with (
        pytest.raises(InputError, match="no decoder layer 6"),
        edited_state(llama.model, llama.anatomy, LAYERS, torch.neg),
    ):
        pass


def test_a_state_given_by_keyword_is_edited_too(llama: LoadedModel) -> None:
    layer, seen = llama.model.model.layers[0], []
    handle = layer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
    )
    state = torch.zeros(1, 3, WIDTH)
    embeddings = (torch.zeros(1, 3, 16), torch.zeros(1, 3, 16))
    try:
        with edited_state(llama.model, llama.anatomy, 0, lambda given: given + 1), torch.no_grad():
            # Hooks run in the order of their registration, so the one above sees the state before the edit.
            layer(hidden_states=state, position_embeddings=embeddings)
            inner: list[torch.Tensor] = []
            late = layer.register_forward_pre_hook(
                lambda module, args, kwargs: inner.append(kwargs["hidden_states"]), with_kwargs=True
            )
            layer(hidden_states=state, position_embeddings=embeddings)
            late.remove()
        with pytest.raises(UnsupportedModelError), edited_state(llama.model, llama.anatomy, 0, torch.neg):
            layer(hidden_states=torch.zeros(1, 3, WIDTH + 1), position_embeddings=embeddings)
    finally:
        handle.remove()
    assert float(seen[0].sum()) == 0.0
    assert float(inner[0].mean()) == 1.0
