"""Where the visual tokens of a prompt are."""

import torch
from torch import Tensor

from sinkscope.backbone.anatomy import Anatomy


def visual_mask(anatomy: Anatomy, input_ids: Tensor) -> Tensor:
    """Positions that carry one image or video patch embedding each.

    They are told by the placeholder ids of the model's config, never by one span, so several images, interleaved text
    and video need nothing special.

    Parameters
    ----------
    anatomy : Anatomy
        Of the model.
    input_ids : LongTensor [B, T]
        As the processor makes them, one placeholder per visual token.

    Returns
    -------
    BoolTensor [B, T]
    """
    if not anatomy.placeholder_ids:
        return torch.zeros_like(input_ids, dtype=torch.bool)
    return torch.isin(input_ids, torch.tensor(anatomy.placeholder_ids, device=input_ids.device))
