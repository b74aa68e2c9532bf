"""Pixel tensors in the layouts that occur in transformers, as the arguments of a model's forward pass call for them."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

Pixels = dict[str, Tensor]


@dataclass(frozen=True)
class Sizes:
    """What a model's config says about its pictures, in pixels and patches."""

    patch: int
    picture: int
    large: int
    channels: int
    merge: int
    frames: int
    pooled: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of a picture whose size is free."""
        return 2 * self.merge, 3 * self.merge


def sizes_of(config: Any) -> Sizes:
    """The sizes, from the vision config where there is one; usual ones where nothing is said."""
    vision = getattr(config, "vision_config", None) or config

    def number(otherwise: int, *names: str) -> int:
        for owner in (vision, config):
            for name in names:
                value = owner.get(name) if isinstance(owner, dict) else getattr(owner, name, None)
                while isinstance(value, (list, tuple)) and value:
                    value = value[0]
                if isinstance(value, int) and value:
                    return value
        return otherwise

    return Sizes(
        patch=number(14, "patch_size"),
        picture=number(224, "image_size"),
        large=getattr(getattr(config, "high_res_vision_config", None), "image_size", 32),
        channels=number(3, "in_channels", "num_channels"),
        merge=number(2, "spatial_merge_size"),
        frames=number(1, "temporal_patch_size"),
        pooled=number(3, "pooling_kernel_size"),
    )


def layouts(model: Any) -> Iterator[Callable[[int], Pixels]]:
    """The layouts that the names of the model's arguments allow, the more particular first; each for n pictures."""
    names = inspect.signature(model.forward).parameters
    sizes = sizes_of(model.config)
    for needed, layout in LAYOUTS:
        if needed in names:
            yield partial(layout, sizes)


def _grid(sizes: Sizes, pictures: int, *, shape: Callable[[Sizes], tuple[int, ...]]) -> Pixels:
    """Patches of all pictures in a row, with rows and columns of each picture."""
    rows, columns = sizes.grid
    return {
        "pixel_values": noise(pictures * rows * columns, *shape(sizes)),
        "image_grid_thw": torch.tensor([[1, rows, columns]] * pictures),
        "image_merge_sizes": torch.tensor([sizes.merge] * pictures),
    }


def _height_width(sizes: Sizes, pictures: int) -> Pixels:
    return {
        "pixel_values": noise(pictures * 64, sizes.channels * sizes.patch**2),
        "image_grid_hw": torch.tensor([[8, 8]] * pictures),
    }


def _strip(sizes: Sizes, pictures: int) -> Pixels:
    """Patches side by side in one long strip."""
    return {
        "pixel_values": noise(1, sizes.channels, sizes.patch, pictures * 64 * sizes.patch),
        "target_sizes": torch.tensor([[8, 8]] * pictures),
    }


def _pooled(sizes: Sizes, pictures: int) -> Pixels:
    """One crop a picture, and which of its patches each visual token pools: squares of two by two."""
    side = sizes.picture // sizes.patch
    half = side // 2
    corners = torch.tensor([2 * row * side + 2 * column for row in range(half) for column in range(half)])
    squares = corners[:, None] + torch.tensor([0, 1, side, side + 1])
    return {
        "pixel_values": noise(pictures, side * side, sizes.channels * sizes.patch**2),
        "image_token_pooling": torch.cat([squares + side * side * place for place in range(pictures)]),
        "image_grids": torch.tensor([[half, half, 0, 0]] * pictures),
        "image_num_crops": torch.ones(pictures, dtype=torch.long),
    }


def _padded(sizes: Sizes, pictures: int) -> Pixels:
    """As many patches for every picture, a mask, and rows and columns."""
    side = 4 * sizes.merge
    return {
        "pixel_values": noise(pictures, side * side, sizes.channels * sizes.patch**2),
        "spatial_shapes": torch.tensor([[side, side]] * pictures),
        "pixel_attention_mask": torch.ones(pictures, side * side, dtype=torch.long),
    }


def _placed(sizes: Sizes, pictures: int, *, by: Callable[[Sizes], int]) -> Pixels:
    """Patches beside their places (x, y) in the picture."""
    side = 4 * sizes.pooled
    places = torch.tensor([[x, y] for y in range(side) for x in range(side)])
    return {
        "pixel_values": noise(pictures, side * side, sizes.channels * by(sizes) ** 2),
        "image_position_ids": places.expand(pictures, -1, -1).clone(),
    }


def _tiles_with_mask(sizes: Sizes, pictures: int, *, whole: bool) -> Pixels:
    """One sample's pictures as tiles, with a mask of tiles or of pixels."""
    shape = () if whole else (sizes.picture, sizes.picture)
    return {
        "pixel_values": noise(1, pictures, sizes.channels, sizes.picture, sizes.picture),
        "pixel_attention_mask": torch.ones(1, pictures, *shape, dtype=torch.bool if whole else torch.long),
    }


def _aspect_ratios(sizes: Sizes, pictures: int) -> Pixels:
    return {
        "pixel_values": noise(1, pictures, 4, sizes.channels, sizes.picture, sizes.picture),
        "aspect_ratio_ids": torch.ones(1, pictures, dtype=torch.long),
        "aspect_ratio_mask": torch.tensor([1, 0, 0, 0]).expand(1, pictures, 4).clone(),
    }


def _any_size(sizes: Sizes, pictures: int) -> Pixels:
    side = 6 * sizes.patch
    return {
        "pixel_values": noise(pictures, sizes.channels, side, side),
        "image_sizes": torch.tensor([[side, side]] * pictures),
    }


def _tiles(sizes: Sizes, pictures: int, *, tiles: int) -> Pixels:
    return {
        "pixel_values": noise(pictures, tiles, sizes.channels, sizes.picture, sizes.picture),
        "image_sizes": torch.tensor([[sizes.picture, sizes.picture]] * pictures),
    }


def _squares(sizes: Sizes, pictures: int, *, name: str = "pixel_values") -> Pixels:
    """Whole pictures, and large ones for those who want them too."""
    return {
        name: noise(pictures, sizes.channels, sizes.picture, sizes.picture),
        "high_res_pixel_values": noise(pictures, sizes.channels, sizes.large, sizes.large),
    }


def _of_one_sample(sizes: Sizes, pictures: int) -> Pixels:
    return {"pixel_values": noise(1, pictures, sizes.channels, sizes.picture, sizes.picture)}


def _cubes(sizes: Sizes, pictures: int) -> Pixels:
    """Patches alone, channels last, each a visual token."""
    return {"pixel_values": noise(pictures * 6, sizes.frames, sizes.patch, sizes.patch, sizes.channels)}


def _flattened(sizes: Sizes, pictures: int) -> Pixels:
    """Patches that begin with their row and column, counted from 1."""
    places = torch.tensor([[row, column] for row in range(1, 5) for column in range(1, 5)], dtype=torch.float32)
    patches = noise(pictures, len(places), sizes.channels * 16 * 16)
    return {"flattened_patches": torch.cat([places.expand(pictures, -1, -1), patches], -1)}


def _patches(sizes: Sizes, pictures: int) -> Pixels:
    return {"pixel_values": noise(pictures, 12, sizes.channels * sizes.patch**2)}


def noise(*shape: int) -> Tensor:
    """Seeded pixels, around zero as processors leave them."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


LAYOUTS: tuple[tuple[str, Callable[..., Pixels]], ...] = (
    *(
        ("image_grid_thw", partial(_grid, shape=shape))
        for shape in (
            lambda sizes: (sizes.channels * sizes.frames * sizes.patch**2,),
            lambda sizes: (sizes.channels * 2 * sizes.patch**2,),
            lambda sizes: (sizes.channels * sizes.patch**2,),
            lambda sizes: (sizes.channels, sizes.patch, sizes.patch),
            lambda sizes: (sizes.merge * sizes.patch, sizes.merge * sizes.patch, sizes.channels),
        )
    ),
    ("image_grid_hw", _height_width),
    ("target_sizes", _strip),
    ("image_token_pooling", _pooled),
    ("spatial_shapes", _padded),
    ("image_position_ids", partial(_placed, by=lambda sizes: sizes.patch)),
    ("image_position_ids", partial(_placed, by=lambda sizes: sizes.patch * sizes.pooled)),
    ("tile_fine_mask", partial(_tiles_with_mask, whole=True)),
    ("pixel_attention_mask", partial(_tiles_with_mask, whole=False)),
    ("aspect_ratio_ids", _aspect_ratios),
    ("image_sizes", _any_size),
    *(("image_sizes", partial(_tiles, tiles=tiles)) for tiles in range(2, 11)),
    ("pixel_values", _squares),
    ("pixel_values_images", partial(_squares, name="pixel_values_images")),
    ("pixel_values", _of_one_sample),
    ("pixel_values", _cubes),
    ("flattened_patches", _flattened),
    ("pixel_values", _patches),
)
"""The argument that a layout goes with, and the layout."""
