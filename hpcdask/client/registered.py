"""What a client keeps of its plugins, to register them again where a scheduler knows none."""

from __future__ import annotations

import logging
from typing import NamedTuple

from hpcdask.messages import Message, PluginFailed
from hpcdask.messages.client import RegisterPlugin
from hpcdask.tracebacks import to_exception

log = logging.getLogger("hpcdask.client")


class _Kept(NamedTuple):
    message: RegisterPlugin
    leader: str
    known_to: str  # id of a scheduler


class RegisteredPlugins:
    """The plugins that one client has registered, and not unregistered."""

    def __init__(self) -> None:
        #: By kind and name, in the order of registration.
        self._plugins: dict[tuple[str, str], _Kept] = {}

    def keep(self, message: RegisterPlugin, leader: str, scheduler_id: str) -> None:
        """A scheduler has taken up a plugin.

        Parameters
        ----------
        leader : str
            Its kind, or that of the plugin of the same name with which it came.
        """
        self._plugins.pop((message.kind, message.name), None)
        self._plugins[message.kind, message.name] = _Kept(message, leader, scheduler_id)

    def drop(self, kind: str, name: str) -> None:
        """A plugin was unregistered, and with it those that have come with it."""
        for key, kept in list(self._plugins.items()):
            if kept.message.name == name and kept.leader == kind:
                del self._plugins[key]

    def names(self, kind: str) -> list[str]:
        """Names of the plugins of a kind, without those that have come with others."""
        return [name for (of, name), kept in self._plugins.items() if of == kind == kept.leader]

    def to_tell(self, scheduler_id: str) -> list[Message]:
        """What to tell a scheduler that was found: nothing if it is the one that was lost.

        That one knows them, and may know that somebody else has unregistered some.
        """
        told: list[Message] = []
        for key, kept in list(self._plugins.items()):
            if kept.known_to != scheduler_id:
                self._plugins[key] = kept._replace(known_to=scheduler_id)
                told.append(kept.message._replace(request=0, again=True))
        return told


def plugin_failed(message: PluginFailed) -> None:
    """A plugin of this client has raised, and nobody waited for it."""
    exc = to_exception(message.error)
    text = "plugin %r raised in %s on %s: %s: %s"
    where = message.error.worker
    log.warning(text, message.name, message.hook, where, type(exc).__name__, exc)
