"""What a config must hold. Each check raises InputError naming the field."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lfmim.schema import InputError


def check(ok: bool, field: str, message: str) -> None:
    # Conditions are written as what must hold, so that NaN, which compares false, is refused.
    if not ok:
        raise InputError(f"{field}: {message}")


def check_stuck(minutes: float, field: str) -> None:
    check(0 < minutes < math.inf, field, f"{minutes} must be positive and finite")


def check_least(config: Any, prefix: str, least: int, *fields: str) -> None:
    words = f"must be at least {least}" if least else "must not be negative"
    for field in fields:
        value = getattr(config, field)
        check(value >= least, f"{prefix}{field}", f"{value} {words}")


def check_share(config: Any, prefix: str, *fields: str) -> None:
    for field in fields:
        value = getattr(config, field)
        check(0 <= value < 1, f"{prefix}{field}", f"{value} is not in [0, 1)")


def check_choices(config: Any, prefix: str = "") -> None:
    """Raise InputError unless every field of a Literal type holds one of its values.

    The command line sees to that itself, but configs also come from code and from checkpoints.
    """
    for field, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal:
            value, choices = getattr(config, field), get_args(hint)
            problem = f"{value!r} is not one of {', '.join(choices)}"
            check(value in choices, f"{prefix}{field}", problem)
