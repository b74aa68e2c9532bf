"""Learned sink logits take their part of a row, whatever the kernel calls them."""

import pytest
import torch
from torch import nn

from sinkscope.backbone.attention import AttentionCall
from sinkscope.backbone.attention_weights import attention_weights

BATCH, HEADS, ROWS, WIDTH = 2, 4, 5, 8


def call_with(**kwargs: object) -> AttentionCall:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(BATCH, HEADS, ROWS, WIDTH, generator=generator) for _ in range(3))
    module = nn.Module()
    return AttentionCall(0, module, query, key, value, None, WIDTH**-0.5, "eager", kwargs, _run=lambda *_: None)


@pytest.mark.parametrize("name", ["s_aux", "sinks", "anything"])
@pytest.mark.parametrize("shape", [(HEADS,), (BATCH, HEADS, ROWS, 1)])
def test_a_logit_per_head_or_per_row_takes_its_part(name, shape):
    learned = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    call = call_with(**{name: learned})
    logits = call.query @ call.key.mT * call.scaling
    column = learned.reshape(1, HEADS, 1, 1) if len(shape) == 1 else learned
    expected = torch.cat([logits, column.expand(BATCH, HEADS, ROWS, 1)], -1).softmax(-1)[..., :-1]
    torch.testing.assert_close(attention_weights(call), expected)
    rows = torch.tensor([1, 3])
    torch.testing.assert_close(attention_weights(call, slice(1, 3), rows), expected[:, 1:3, rows])


def test_other_arguments_are_no_sinks():
    plain = attention_weights(call_with())
    assert plain.sum(-1).allclose(torch.ones(()))
    others = call_with(
        position_ids=torch.arange(ROWS)[None],
        position_embeddings=(torch.ones(1, ROWS, WIDTH), torch.ones(1, ROWS, WIDTH)),
        cu_seq_lens=torch.arange(HEADS),
        dropout=0.0,
    )
    torch.testing.assert_close(attention_weights(others), plain)
