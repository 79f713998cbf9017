"""Calling what plugins define, whoever runs them: worker, nanny or scheduler."""

from __future__ import annotations

import inspect
import logging
import secrets
from collections.abc import Callable, Iterable
from typing import Any

from hpcdask.tracebacks import as_text

log = logging.getLogger("hpcdask.plugins")

#: What a plugin may raise without an end of the process that runs it: `sys.exit` is one thing.
RAISED = (Exception, SystemExit)


def does_nothing(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a method of a base class that need not be called."""
    hook.does_nothing = True  # type: ignore[attr-defined]
    return hook


def hook_of(plugin: object, name: str) -> Callable[..., Any] | None:
    """What a plugin has to say to an event; None if it has nothing.

    What is called is told by keywords, more than documented ones at times: one that has no
    ``**kwargs`` gets those that it has parameters for.
    """
    hook: Any = getattr(plugin, name, None)
    if not callable(hook) or getattr(hook, "does_nothing", False):
        return None
    try:
        parameters = inspect.signature(hook).parameters.values()
    except (TypeError, ValueError):  # some builtins tell nothing
        return hook  # type: ignore[no-any-return]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return hook  # type: ignore[no-any-return]
    known = {parameter.name for parameter in parameters}

    def fitted(*args: Any, **kwargs: Any) -> Any:
        return hook(*args, **{name: value for name, value in kwargs.items() if name in known})

    return fitted


def name_of(plugin: object) -> str:
    """The name of a plugin, or a new one."""
    return getattr(plugin, "name", None) or f"{type(plugin).__name__}-{secrets.token_hex(8)}"


class Hooks:
    """What the plugins of one process have to say to each of some events.

    Parameters
    ----------
    names : iterable of str
        Names of the events.
    report : callable
        Called with the plugin's name, the event's and the exception when one raises, the first time
        for each plugin and event: what raises at each of a million tasks need not be told that
        often.
    """

    def __init__(
        self, names: Iterable[str], report: Callable[[str, str, BaseException], None]
    ) -> None:
        self._names, self._report = tuple(names), report
        self._hooks: dict[str, dict[str, Callable[..., Any]]] = {name: {} for name in self._names}
        self._reported: set[tuple[str, str]] = set()

    def add(self, name: str, plugin: object) -> None:
        """Take up a plugin, in the place of the one of its name."""
        self.remove(name)
        for event in self._names:
            hook = hook_of(plugin, event)
            if hook is not None:
                self._hooks[event][name] = hook

    def remove(self, name: str) -> None:
        """Forget a plugin."""
        for event in self._names:
            self._hooks[event].pop(name, None)
            self._reported.discard((name, event))

    def of(self, event: str) -> list[tuple[str, Callable[..., Any]]]:
        """Who has something to say to an event, by name."""
        return list(self._hooks[event].items())

    def has(self, event: str) -> bool:
        """Whether anybody has something to say to an event."""
        return bool(self._hooks[event])

    def call(self, event: str, *args: Any, **kwargs: Any) -> list[tuple[str, Any]]:
        """Call all plugins that want to know; return what each of them has returned."""
        returned = []
        for name, hook in self.of(event):
            try:
                returned.append((name, hook(*args, **kwargs)))
            except RAISED as exc:
                self.raised(name, event, exc)
        return returned

    def raised(self, name: str, event: str, exc: BaseException) -> None:
        """A plugin has raised."""
        if (name, event) not in self._reported:
            self._reported.add((name, event))
            self._report(name, event, exc)


def tell(name: str, event: str, exc: BaseException, where: str) -> None:
    """Log that a plugin has raised."""
    log.error("plugin %r raised in %s on %s:\n%s", name, event, where, as_text(exc))
