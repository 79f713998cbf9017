"""Which plugins the workers and nannies of a cluster are to have: those that come later, too."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from hpcdask.messages import Blob


class Plugin(NamedTuple):
    """A plugin as a client has registered it; only who runs it opens its pickle."""

    name: str
    registration: str
    pickled: Blob


class PluginRegistry:
    """The plugins of one kind of process, by name, in the order of their registration."""

    def __init__(self) -> None:
        self._plugins: dict[str, Plugin] = {}
        self._gone: dict[str, str] = {}  # names of those that are no more, by registration

    def registered(self, plugin: Plugin, idempotent: bool) -> bool:
        """Note a plugin.

        Returns
        -------
        bool
            Whether it is to be set up: not if it is known, nor, if it is `idempotent`, where there
            is one of its name.
        """
        known = self._plugins.get(plugin.name)
        if known is not None and (idempotent or known.registration == plugin.registration):
            return False
        self.unregistered(plugin.name)
        self._gone.pop(plugin.registration, None)
        self._plugins[plugin.name] = plugin
        return True

    def unregistered(self, name: str) -> bool:
        """Forget a plugin; say whether there was one."""
        plugin = self._plugins.pop(name, None)
        if plugin is not None:
            self._gone[plugin.registration] = name
        return plugin is not None

    def missing(self, there: Iterable[str]) -> list[Plugin]:
        """What a process lacks that has these, by their registrations."""
        has = set(there)
        return [p for p in self._plugins.values() if p.registration not in has]

    def outdated(self, there: Iterable[str]) -> list[str]:
        """Names of what a process has of these that it should not have any more.

        One that another has taken the place of is none of them: setting that up replaces it. Nor is
        one that only the scheduler before has known: its client may come, and register it again.
        """
        names = [self._gone[registration] for registration in there if registration in self._gone]
        return [name for name in names if name not in self._plugins]
