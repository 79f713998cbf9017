"""Options whose defaults can be configured: which they are, and what they then are.

The schema says which option a setting stands behind, so options know nothing of it, and a command
needs one line, with `settled`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click
from click.core import ParameterSource

from hpcdask import config
from hpcdask.config import Settings, jobs
from hpcdask.config.kinds import is_null
from hpcdask.config.schema import SCHEMA
from hpcdask.config.setting import Setting
from hpcdask.errors import ConfigError

#: What the schema calls commands that have the options of others.
_CALLED = {"mpi": "mpirun", "run": "mpirun", "submit": "jobscript"}
#: Settings by option, spelt as the schema does.
_BEHIND: dict[str, list[Setting]] = {}
for _setting in SCHEMA:
    for _option in _setting.options:
        _BEHIND.setdefault(_option, []).append(_setting)


def configure(*commands: click.Command) -> None:
    """Let commands have their defaults from the configuration, and their help name the keys."""
    for command in commands:
        command.context_settings["default_map"] = Defaults(command)
        for parameter in command.params:
            settings = behind(command).get(str(parameter.name), [])
            if settings and isinstance(parameter, click.Option):
                keys = dict.fromkeys(jobs.generic(setting.key) for setting in settings)
                parameter.help = f"{parameter.help}  [key: {', '.join(keys)}]"


def behind(command: click.Command) -> dict[str, list[Setting]]:
    """The settings behind a command's parameters, by the names of these."""
    called = _CALLED.get(str(command.name), command.name)
    found = {}
    for parameter in command.params:
        for name in (*parameter.opts, str(parameter.name).upper()):
            if settings := _BEHIND.get(f"{called} {name}"):
                found[str(parameter.name)] = settings
    return found


class Defaults(Mapping[str, Any]):
    """What is configured for a command's parameters; looked for when somebody asks.

    Nothing is, if the configuration is in error. Then ``--help`` should work nevertheless, and the
    command says what is wrong when it settles its options.
    """

    def __init__(self, command: click.Command) -> None:
        self._settings = {
            name: settings[0]
            for name, settings in behind(command).items()
            if len(settings) == 1 and settings[0].is_preset
        }

    def __getitem__(self, name: str) -> Any:
        setting = self._settings[name]
        try:
            settings = config.current()
        except ConfigError:
            raise KeyError(name) from None
        value = _preset(settings, setting) if settings.is_configured(setting.key) else None
        if value is None:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._settings if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _preset(settings: Settings, setting: Setting) -> Any:
    """What to give an option in place of what it would find on the command line."""
    raw = settings.raw(setting.key)
    if setting.kind.is_path:  # to be filled in by who needs it
        return raw
    value = settings[setting.key]
    if setting.kind.is_table:
        return " ".join(f"{name}={amount}" for name, amount in value.items())
    if value is None or isinstance(value, (bool, tuple)):
        return value
    return str(value if is_null(raw) else raw)  # as somebody has written it, for --help


# -- The command line goes first ------------------------------------------------------------------

_OF_RANKS: dict[str, tuple[str, ...]] = {
    "scheduler_interface": ("interface",),
    "scheduler_port": ("port_range",),
    "scheduler_file": ("arguments",),
    "lifetime_restart": ("nanny",),
    "nanny": ("lifetime_restart",),
}
#: By command: what is configured gives way to any of these on the command line, with which it does
#: not go.
_GIVES_WAY_TO: dict[str, dict[str, tuple[str, ...]]] = {
    "scheduler": {"interface": ("host",), "contact_address": ("host", "interface")},
    "worker": {
        "interface": ("host", "listen_address"),
        "port": ("listen_address",),
        "nworkers": ("listen_address", "nanny"),
        "preload_nanny": ("nanny",),
        "lifetime_restart": ("nanny",),
        "nanny": ("nworkers", "preload_nanny", "lifetime_restart"),
        "scheduler": ("scheduler_file",),
        "scheduler_file": ("scheduler",),
    },
    "mpi": _OF_RANKS,
    "run": _OF_RANKS,
}
#: What is configured counts only with the other, wherever that comes from.
_NEEDS = {"lifetime_stagger": "lifetime", "lifetime_restart": "lifetime"}


def settled(given: dict[str, Any]) -> dict[str, Any]:
    """Options of the running command as they count.

    Without what is configured and does not go with what is on the command line, and with configured
    paths filled in. Two that contradict each other and are both on the command line, or both
    configured, are for the command to refuse.

    Raises
    ------
    ConfigError
        If a path names a variable that is not set here.
    """
    context = click.get_current_context()
    gives_way_to = _GIVES_WAY_TO.get(str(context.command.name), {})
    settings = {name: each[0] for name, each in behind(context.command).items()}

    def is_written(name: str) -> bool:
        default = settings[name].default if name in settings else None
        source = context.get_parameter_source(name)
        return source is ParameterSource.COMMANDLINE and context.params.get(name) != default

    def value(name: str, found: Any) -> Any:
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT_MAP:
            return found
        lacks = name in _NEEDS and not given[_NEEDS[name]]
        if lacks or any(map(is_written, gives_way_to.get(name, ()))):
            return settings[name].default
        return config.get(settings[name].key) if settings[name].kind.is_path else found

    return {name: value(name, found) for name, found in given.items()}


def with_section(given: dict[str, Any], section: str) -> dict[str, Any]:
    """Options of the running command; those that nobody has given as a section has them.

    For options behind which several sections have settings, if the command knows the one that
    counts.
    """
    context, settings = click.get_current_context(), config.current()
    parameters = {str(parameter.name): parameter for parameter in context.command.params}
    found = dict(given)
    for name, each in behind(context.command).items():
        is_written = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        for setting in each:
            is_of_it = setting.key.startswith(f"{section}.")
            if is_of_it and not is_written and settings.is_configured(setting.key):
                preset = _preset(settings, setting)
                found[name] = parameters[name].type_cast_value(context, preset)
    return found
