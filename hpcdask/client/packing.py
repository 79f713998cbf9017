"""Values that the scheduler keeps for others: pickled, with the keys of the futures in them."""

from __future__ import annotations

from typing import Any

from hpcdask.client.retained import owned
from hpcdask.client.submission import pack_replaced
from hpcdask.messages import Blob


def packed(value: Any) -> tuple[Blob, tuple[str, ...]]:
    """Pickle a value.

    Returns
    -------
    value : Blob
        Nothing that the program changes later changes it, even if the scheduler lives in this very
        process.
    keys : tuple of str
        Of the futures in it, which must live until the scheduler has the value.
    """
    blob, keys = pack_replaced(value, {})
    return owned(blob), keys
