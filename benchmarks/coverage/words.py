"""A tokenizer built on the spot, and token ids to run a model on."""

import functools

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from benchmarks.coverage.shrinking import FIRST_RESERVED
from sinkscope.calibration import default_texts

PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
FIRST_WORD = 4


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the embedded calibration texts; it knows none of the reserved ids."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=FIRST_RESERVED - 40,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([sample.text or "" for sample in default_texts()], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@functools.cache
def stops() -> Tensor:
    """The ids that read as a full stop."""
    words = tokenizer()
    return torch.tensor([i for i in range(FIRST_WORD, len(words)) if words.decode([i]).strip() == "."])


def some_ids(*shape: int, seed: int = 0) -> Tensor:
    """Random words, LongTensor of `shape`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(FIRST_WORD, FIRST_RESERVED - 50, shape, generator=generator)
