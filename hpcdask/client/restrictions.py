"""Where a user's tasks may run, and what they take of a worker: checked and made canonical."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from hpcdask.messages import Restriction


def restriction_of(
    workers: Any = None,
    allow_other_workers: bool | None = False,
    resources: Any = None,
    actor: bool = False,
) -> Restriction | None:
    """Turn the keywords of `Client.submit` into a record; equal wishes give equal records.

    Parameters
    ----------
    workers : str or int, or list, tuple or set of these, optional
        Addresses, names or hosts; an int is a name.
    allow_other_workers : bool
        Whether others will do where none of these is there.
    resources : dict, optional
        Name -> amount. An amount of 0 is as good as none.
    actor : bool
        Whether the tasks make actors.

    Returns
    -------
    Restriction or None
        None if there is no restriction.

    Raises
    ------
    TypeError, ValueError
        If a value is none of these.
    """
    if workers is None and not resources and not allow_other_workers and not actor:
        if resources is not None:
            _resources(resources)
        return None
    names = _workers(workers)
    if allow_other_workers not in (True, False, None):
        raise TypeError(f"allow_other_workers must be True or False, not {allow_other_workers!r}")
    if allow_other_workers and not names:
        raise ValueError("allow_other_workers= needs workers=: the others are those not named")
    amounts = _resources(resources)
    if not names and not amounts and not actor:
        return None
    return Restriction(names, bool(allow_other_workers), amounts, bool(actor))


def _workers(workers: Any) -> tuple[str, ...]:
    if workers is None:
        return ()
    names = {workers} if _is_name(workers) else workers
    if not isinstance(names, (list, tuple, set, frozenset)):
        raise TypeError(
            "workers must be an address, a name or a host, or a list, tuple or set of these, "
            f"not {workers!r:.80}"
        )
    for name in names:
        if not _is_name(name):
            raise TypeError(
                f"workers are given by address, name or host, as str or int; not {name!r:.80}"
            )
    if not names or "" in names:
        raise ValueError(
            f"workers={workers!r:.80} names none; leave it out to let the tasks run on any"
        )
    return tuple(sorted({str(name) for name in names}))


def _is_name(value: Any) -> bool:
    # Programs number their workers, and the cluster keeps the numbers as text.
    return isinstance(value, (str, int)) and not isinstance(value, bool)


def _resources(resources: Any) -> tuple[tuple[str, float], ...]:
    if resources is None:
        return ()
    if not isinstance(resources, Mapping):
        raise TypeError(
            f"resources must be a dict of amounts by name, as {{'GPU': 1}}, not {resources!r:.80}"
        )
    for name, amount in resources.items():
        if not isinstance(name, str):
            raise TypeError(f"the name of a resource must be a str, not {name!r:.80}")
        if not isinstance(amount, Real):
            raise TypeError(f"the amount of resource {name!r} must be a number, not {amount!r:.80}")
        if not 0 <= float(amount) < math.inf:
            raise ValueError(
                f"the amount of resource {name!r} must be at least 0 and finite, not {amount!r:.80}"
            )
    return tuple(sorted((name, float(amount)) for name, amount in resources.items() if amount))
