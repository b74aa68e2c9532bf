"""What a forward pass without data records, and how it goes on where code asks for values."""

import pytest
import torch
from torch import nn

from sinkscope.weights.dataflow import Dataflow


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(4, 3, device="meta"))
        self.register_buffer("scale", torch.empty(3, device="meta"))


def operations_behind(node):
    stack, seen = [node], {}
    while stack:
        entry = stack.pop()
        if entry.number not in seen:
            seen[entry.number] = entry.operation
            stack += entry.inputs
    return seen


@pytest.fixture
def model():
    return Small()


@pytest.fixture
def tokens():
    return torch.ones(5, dtype=torch.int64, device="meta")


def test_inputs_have_smaller_numbers_and_only_tokens_move(model):
    state = torch.empty(5, 3, device="meta")
    with Dataflow(model) as flow:
        still = model.weight * model.scale + torch.arange(3, device="meta")
        product = state @ still.T
    assert not flow.node(still).moving
    node = flow.node(product)
    assert node.moving
    assert (node.operation, node.result) == ("aten.mm", (5, 4))
    stack = [node]
    while stack:
        entry = stack.pop()
        assert all(before.number < entry.number for before in entry.inputs)
        stack += entry.inputs


def test_what_is_written_into_a_part_is_behind_the_whole(model):
    state = torch.empty(5, 3, device="meta")
    with Dataflow(model) as flow:
        whole = torch.zeros(5, 4, device="meta")
        before = flow.node(whole)
        whole[1:] = (state @ model.weight.T)[1:]
    assert "aten.mm" in operations_behind(flow.node(whole)).values()
    assert "aten.mm" not in operations_behind(before).values()
    assert flow.node(whole) is flow.node(whole)


@pytest.mark.parametrize(
    ("ask", "answer"),
    [
        (lambda tokens: tokens.tolist(), [0] * 5),
        (lambda tokens: tokens.cpu().numpy().sum(), 0),
        (lambda tokens: tokens[0].item(), 0),
        (lambda tokens: bool((tokens == 1).any()), False),
        (lambda tokens: torch.equal(tokens, tokens), True),
        (lambda tokens: tokens.unique().shape, (1,)),
        (lambda tokens: [part.shape for part in tokens.unique(return_inverse=True)], [(1,), (5,)]),
        (lambda tokens: torch.unique_consecutive(tokens).shape, (1,)),
        (lambda tokens: torch.where(tokens == 1)[0].shape, (1,)),
        (lambda tokens: tokens[tokens == 1].shape, (1,)),
        (lambda tokens: tokens[None].expand(2, 5)[:, tokens == 1].shape, (2, 1)),
        (lambda tokens: tokens[None, :, None].expand(2, 5, 3)[(tokens == 1).expand(2, 5)].shape, (1, 3)),
        (lambda tokens: tokens.masked_select(tokens == 1).shape, (1,)),
        (lambda tokens: [len(part) for part in tokens.split(torch.bincount(tokens).tolist())], [5]),
        (lambda tokens: [len(part) for part in tokens.split(tokens.tolist())], [5, 0, 0, 0, 0]),
        (lambda tokens: [len(part) for part in tokens.split([2, 3])], [2, 3]),
    ],
)
def test_questions_for_values_are_answered(model, tokens, ask, answer):
    with Dataflow(model):
        assert ask(tokens) == answer


def test_values_on_the_cpu_are_computed(model):
    with Dataflow(model):
        assert torch.tensor([3, 3, 5]).unique().tolist() == [3, 5]
