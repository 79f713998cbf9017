"""Environment variables for all workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hpcdask.plugins.base import NannyPlugin

if TYPE_CHECKING:
    from hpcdask.nanny import Nanny


class Environ(NannyPlugin):
    """Sets environment variables of all workers, which are restarted for it.

    Workers have them from their first moment, as libraries need that read them when they are
    loaded. A worker without a nanny does not get them.

    Parameters
    ----------
    environ : mapping
        What is no string is turned into one.

    Examples
    --------
    >>> results = client.register_plugin(Environ({"MALLOC_TRIM_THRESHOLD_": 0}))
    >>> client.submit(os.getenv, "MALLOC_TRIM_THRESHOLD_").result()
    '0'
    """

    restart = True

    def __init__(self, environ: Mapping[str, object] | None = None) -> None:
        self.environ = {str(name): str(value) for name, value in (environ or {}).items()}

    def setup(self, nanny: Nanny) -> None:
        """Keep them for the workers that this nanny starts."""
        nanny.env.update(self.environ)

    def teardown(self, nanny: Nanny) -> None:
        """Start later workers without them."""
        for name in self.environ:
            nanny.env.pop(name, None)
