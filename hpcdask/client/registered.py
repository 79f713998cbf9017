"""What a client keeps of its plugins, to register them again where a scheduler knows none."""

from __future__ import annotations

import logging

from hpcdask.messages import Message, PluginFailed, RegisterPlugin
from hpcdask.tracebacks import to_exception

log = logging.getLogger("hpcdask.client")


class RegisteredPlugins:
    """The plugins that one client has registered, and not unregistered."""

    def __init__(self) -> None:
        #: Each with the id of the scheduler that knows it, in the order of registration.
        self._plugins: dict[tuple[str, str], tuple[RegisterPlugin, str]] = {}

    def keep(self, message: RegisterPlugin, scheduler_id: str) -> None:
        """A scheduler has taken up a plugin."""
        self.drop(message.kind, message.name)
        self._plugins[message.kind, message.name] = message, scheduler_id

    def drop(self, kind: str, name: str) -> None:
        """A plugin was unregistered."""
        self._plugins.pop((kind, name), None)

    def to_tell(self, scheduler_id: str) -> list[Message]:
        """What to tell a scheduler that was found: nothing if it is the one that was lost.

        That one knows them, and may know that somebody else has unregistered some.
        """
        told: list[Message] = []
        for key, (message, known_to) in list(self._plugins.items()):
            if known_to != scheduler_id:
                self._plugins[key] = message, scheduler_id
                told.append(message._replace(request=0, again=True))
        return told


def plugin_failed(message: PluginFailed) -> None:
    """A plugin of this client has raised, and nobody waited for it."""
    exc = to_exception(message.error)
    text = "plugin %r raised in %s on %s: %s: %s"
    where = message.error.worker
    log.warning(text, message.name, message.hook, where, type(exc).__name__, exc)
