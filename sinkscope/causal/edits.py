"""Edits of hidden states at chosen tokens, as pure functions."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sinkscope.errors import InputError


def exchange(states: Tensor, rows: Sequence[int], dims: Sequence[int], partners: Sequence[int]) -> Tensor:
    """Swap, in the chosen rows, the values of `dims` with those of `partners`, one by one and signs included.

    Every edited row keeps the multiset of its values, so its norm is kept too, and with it what a norm layer makes of
    all other dimensions: only the place of the values changes. Applied twice it gives the states back.

    Parameters
    ----------
    states : Tensor [T, D]
        Left as they are.
    rows : sequence of int
        Tokens to edit.
    dims, partners : sequences of int
        Equally many, all different.

    Returns
    -------
    Tensor [T, D]

    Raises
    ------
    InputError
        If a dimension occurs twice, or the numbers differ.
    """
    if len(dims) != len(partners) or len({*dims, *partners}) != 2 * len(dims):
        raise InputError("an exchange needs one partner for every dimension, and no dimension twice")
    edited = states.clone()
    places = _index(states, rows)[:, None]
    first, second = _index(states, dims), _index(states, partners)
    edited[places, first] = states[places, second]
    edited[places, second] = states[places, first]
    return edited


def copy(states: Tensor, rows: Sequence[int], dims: Sequence[int], partners: Sequence[int]) -> Tensor:
    """Write, in the chosen rows, the values of `dims` over those of `partners`, and leave `dims` as they are.

    The control of an exchange: what it shows too comes of the values landing on the partners, not of their leaving
    their own place. It raises the row's norm, by no more than the square root of 2.

    Parameters and errors are those of `exchange`.
    """
    exchanged = exchange(states, rows, dims, partners)
    places, kept = _index(states, rows)[:, None], _index(states, dims)
    exchanged[places, kept] = states[places, kept]
    return exchanged


def neutralise(states: Tensor, rows: Sequence[int], dims: Sequence[int], values: Sequence[float]) -> Tensor:
    """Set, in the chosen rows, each of `dims` to its value: zero, or what is typical of it.

    The row's norm changes with it, so a norm layer scales all that is left of the token up; see `exchange`.

    Parameters
    ----------
    states : Tensor [T, D]
        Left as they are.
    rows : sequence of int
        Tokens to edit.
    dims : sequence of int
    values : sequence of float
        One for every dimension, in the units of the hidden state.

    Returns
    -------
    Tensor [T, D]

    Raises
    ------
    InputError
        If a dimension occurs twice, or the numbers differ.
    """
    if len(dims) != len(values) or len(set(dims)) != len(dims):
        raise InputError("neutralising needs one value for every dimension, and no dimension twice")
    edited = states.clone()
    edited[_index(states, rows)[:, None], _index(states, dims)] = torch.tensor(
        list(values), dtype=states.dtype, device=states.device
    )
    return edited


def transplant(states: Tensor, rows: Sequence[int], dims: Sequence[int], donor: int) -> Tensor:
    """Put an ordinary token's state in place of the chosen rows, with only the values of `dims` kept from them.

    The opposite question to `exchange`: are these values enough? Without dimensions it gives the floor, what an
    ordinary token draws in the same places.

    Parameters
    ----------
    states : Tensor [T, D]
        Left as they are.
    rows : sequence of int
        Tokens to edit.
    dims : sequence of int
        May be empty.
    donor : int
        The ordinary token, one row of `states`.

    Returns
    -------
    Tensor [T, D]
    """
    edited = states.clone()
    places, kept = _index(states, rows), _index(states, dims)
    edited[places] = states[donor]
    edited[places[:, None], kept] = states[places[:, None], kept]
    return edited


def largest_dims(states: NDArray[np.float32], leave_out: Sequence[int], count: int) -> list[int]:
    """The `count` dimensions that are largest on the tokens, in the median over them and over their RMS.

    Parameters
    ----------
    states : float32 [n, D]
        Hidden states of sink tokens.
    leave_out : sequence of int
        Dimensions that do not count.
    count : int

    Returns
    -------
    list of int
        Largest first.
    """
    size = np.abs(states).astype(np.float64)
    typical = np.median(size / np.sqrt(np.mean(size**2, axis=1, keepdims=True)), axis=0)
    typical[list(leave_out)] = -1.0
    order = np.argsort(-typical, kind="stable")[:count]
    return [int(dim) for dim in order if typical[dim] >= 0]


def ordinary_dims(states: NDArray[np.float32], leave_out: Sequence[int], largest: int) -> NDArray[np.int64]:
    """The dimensions that may be partners of an exchange: nothing is known of them, and none is large on the tokens.

    Parameters
    ----------
    states : float32 [n, D]
        Hidden states of the sink tokens to edit.
    leave_out : sequence of int
        Sink dimensions, companions, all-token outliers and content dimensions.
    largest : int
        The dimensions with the so many largest magnitudes on any of the tokens are left out too, because an exchange
        would move their values as well.

    Returns
    -------
    int64 [m], ascending
    """
    allowed = np.ones(states.shape[1], bool)
    allowed[list(leave_out)] = False
    allowed[np.argsort(-np.abs(states), axis=1, kind="stable")[:, :largest]] = False
    return np.flatnonzero(allowed)


def moved_energy(states: NDArray[np.float32], dims: Sequence[int]) -> float:
    """The median share of the tokens' energy that lies in `dims`: how much an edit of them moves or removes."""
    energy = states.astype(np.float64) ** 2
    return float(np.median(energy[:, list(dims)].sum(axis=1) / np.maximum(energy.sum(axis=1), np.finfo(float).tiny)))


def _index(states: Tensor, places: Sequence[int]) -> Tensor:
    return torch.as_tensor(list(places), dtype=torch.long, device=states.device)
