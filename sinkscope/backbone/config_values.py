"""Values of a config, whatever its class makes of them."""

from typing import Any


def value_of(config: Any, name: str) -> Any:
    """The attribute `name` of a config or module; None where there is none, or where it differs from layer to layer."""
    try:
        return getattr(config, name, None)
    except Exception:  # Properties of configs raise what they like.
        return None


def count_of(config: Any, name: str) -> int | None:
    """The attribute `name` if it is a positive integer."""
    value = value_of(config, name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
