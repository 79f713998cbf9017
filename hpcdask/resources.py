"""What a worker offers besides threads and memory: amounts of named things, as ``GPU=1``."""

from __future__ import annotations

import math
from collections.abc import Mapping

from hpcdask.errors import ConfigError


def parse_resources(text: str) -> dict[str, float]:
    """Amounts in ``"GPU=1 MEM=2e9"``, separated by spaces or commas.

    Raises
    ------
    ConfigError
        If `text` has another form, names one twice, or an amount is no number of at least 0.
    """
    found: dict[str, float] = {}
    for pair in text.replace(",", " ").split():
        name, _, amount = pair.partition("=")
        try:
            number = float(amount)
        except ValueError:
            raise ConfigError(
                f"{pair!r} is no resource; write NAME=NUMBER, as in 'GPU=1 MEM=2e9'"
            ) from None
        if name in found:
            raise ConfigError(f"the resource {name!r} is given twice in {text!r}")
        found[name] = number
    return dict(checked_resources(found))


def checked_resources(given: Mapping[str, float] | str | None) -> tuple[tuple[str, float], ...]:
    """Names and amounts as messages carry them, sorted; from text as from a mapping.

    Raises
    ------
    ConfigError
        If `given` is neither, a name is empty or no text, or an amount is no finite number of at
        least 0.
    """
    if isinstance(given, str):
        given = parse_resources(given)
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(f"{given!r:.80} are no resources; give {{'GPU': 1}} or 'GPU=1'")
    for name, amount in (given or {}).items():
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{name!r} is no name of a resource")
        is_number = isinstance(amount, (int, float)) and not isinstance(amount, bool)
        if not is_number or not math.isfinite(amount) or amount < 0:
            raise ConfigError(
                f"{amount!r} is no amount of the resource {name!r}; give a number of at least 0"
            )
    return tuple(sorted((name, float(amount)) for name, amount in (given or {}).items()))
