"""What the configs of all networks check of their sizes."""

from __future__ import annotations

from typing import Any


def at_least(least: int, config: Any, *names: str) -> None:
    """Raises ValueError unless the fields `names` of a config, numbers or tuples of them, are `least` or more."""
    for name in names:
        value = getattr(config, name)
        if min(value if isinstance(value, tuple) else (value,)) < least:
            raise ValueError(f"{name}={value}: give {least} or more")
