"""Which value of a setting counts: pure functions of what program, environment and files say."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple

from hpcdask.config import jobs
from hpcdask.config.kinds import is_null
from hpcdask.config.schema import BY_KEY, RIVALS, SCHEMA, SECTIONS, VARIABLES, find
from hpcdask.config.setting import PREFIX, Setting
from hpcdask.errors import ConfigError

#: The section that a distributed.yaml has all in.
_THEIRS = "distributed"
#: From here on a variable is so much like one of ours that it is a slip. A lower bound would find
#: something in HPCDASK_ROOT and HPCDASK_DIR, which environment modules are fond of.
_ALIKE = 0.8

#: The setting of each variable.
_BY_VARIABLE = {
    variable: setting.key
    for setting in SCHEMA
    for variable in (setting.variable, *setting.variables)
}


class Found(NamedTuple):
    """What one place says of one setting, or of one entry of a table."""

    raw: Any
    source: str  # "FILE:LINE", the variable's name, or the program


class Row(NamedTuple):
    """A setting for whoever wants to see it."""

    key: str
    value: Any
    text: str  # the value, as somebody has written it
    source: str


class Leaf(NamedTuple):
    """A value before anybody knows what it is for."""

    path: tuple[str, ...]
    raw: Any
    source: str


@dataclass(frozen=True)
class Layer:
    """All that one place says.

    Attributes
    ----------
    found : dict
        By key; the entries of a table have their names behind its key.
    foreign : dict of str to str
        Keys of distributed that mean nothing here, with their sources.
    """

    found: dict[str, Found] = field(default_factory=dict)
    foreign: dict[str, str] = field(default_factory=dict)


def settle(program: Layer, environ: Mapping[str, str], files: Sequence[Layer]) -> Settings:
    """Settle every setting.

    Parameters
    ----------
    program : Layer
        What the program has set. It goes first, since an argument in its code goes first as well.
    environ : mapping
        Environment variables; they come next.
    files : sequence of Layer
        The strongest first.

    Raises
    ------
    ConfigError
        If the environment sets what is no setting, or to what it cannot be.
    """
    return Settings((program, from_environ(environ), *files), environ)


class Settings(Mapping[str, Any]):
    """The value of every setting by its key: times in seconds, sizes in bytes."""

    def __init__(self, layers: Sequence[Layer], environ: Mapping[str, str]) -> None:
        self.layers = tuple(layers)
        self._environ = environ
        self._found: dict[str, Found] = {}
        for layer in reversed(self.layers):
            self._found.update(layer.found)
        for one, other in RIVALS:
            ranks = {key: self._rank(key) for key in (one, other)}
            if len(set(ranks.values())) == 2:  # or they were set together, and mean both
                self._found.pop(max(ranks, key=lambda key: ranks[key]), None)

    def _rank(self, key: str) -> int:
        """Which layer says something of a setting; the lower, the stronger."""
        claims = (key in each.found and not is_null(each.found[key].raw) for each in self.layers)
        return next((n for n, claim in enumerate(claims) if claim), len(self.layers))

    def __getitem__(self, key: str) -> Any:
        setting = _setting(key)
        if setting.kind.is_table:
            entries = {name: each.raw for name, each in self._entries(key).items()}
            return setting.read({name: raw for name, raw in entries.items() if raw is not None})
        found = self._found.get(key)
        if found is None:
            return setting.read(setting.default)
        value = setting.read(found.raw)
        if setting.kind.is_path and value is not None:
            return _filled_in(value, self._environ, f"{found.source}: {key}")
        return value

    def value(self, key: str, given: Any = None) -> Any:
        """What a component takes: what it was given, or else what is configured.

        Raises
        ------
        ConfigError
            If it was given what the setting cannot be.
        """
        return self[key] if given is None else _setting(key).read(given)

    def look_up(self, key: str) -> Any:
        """The value of a setting, of an entry of a table, or of a whole section as nested dicts.

        Raises
        ------
        ConfigError
            If there is no such setting; it says which was meant.
        """
        pieces = key.removeprefix(f"{_THEIRS}.").split(".")
        spot = _place(pieces)
        if spot is None:
            return self._section(".".join(pieces).replace("_", "-"))
        name = ".".join(pieces[spot[1] :])
        if not name:
            return self[spot[0]]
        entries = self[spot[0]] if _setting(spot[0]).kind.is_table else {}
        if name not in entries:
            raise ConfigError(f"{spot[0]} has no entry {name!r}; it has {[*entries] or 'none'}")
        return entries[name]

    def _section(self, section: str) -> dict[str, Any]:
        own = self.own_sections()
        if section not in SECTIONS and section not in own:
            if section != jobs.own_section(section):
                raise ConfigError(_unknown(section))
            there = [*own, *(f"jobqueue.{system}" for system in jobs.SYSTEMS)]
            raise ConfigError(
                f"nothing is configured in a section {section!r}; there are {', '.join(there)}"
            )
        tree: dict[str, Any] = {}
        for key in _inside(section):
            *path, last = key.removeprefix(f"{section}.").split(".")
            branch = tree
            for name in path:
                branch = branch.setdefault(name, {})
            branch[last] = self[key]
        return tree

    def is_configured(self, key: str) -> bool:
        """Whether anything but the default says what it is."""
        return bool(self._entries(key)) if _setting(key).kind.is_table else key in self._found

    def raw(self, key: str) -> Any:
        """The value as somebody has written it."""
        return self._found[key].raw if key in self._found else _setting(key).default

    def source(self, key: str) -> str:
        """Where the value comes from: a file and line, a variable, the program or the default."""
        return self._found[key].source if key in self._found else "default"

    def foreign(self) -> dict[str, str]:
        """Keys of distributed that mean nothing here, with their sources."""
        return {key: where for layer in self.layers for key, where in layer.foreign.items()}

    def own_sections(self) -> dict[str, list[str]]:
        """Sections of batch jobs that are the user's or the site's own, with what they set."""
        sections: dict[str, list[str]] = {}
        for name in sorted(self._found):
            if section := jobs.own_section(name):
                keys = sections.setdefault(section, [])
                key, _ = _place(name.split(".")) or (name, 0)  # of an entry, that of its table
                keys += [key] if key not in keys else []
        return sections

    def rows(self) -> Iterator[Row]:
        """All settings; a table has a row for each of its entries."""
        own = [key for keys in self.own_sections().values() for key in keys]
        for key in (*BY_KEY, *own):
            setting = _setting(key)
            entries = self._entries(key) if setting.kind.is_table else {}
            for name, found in entries.items():
                value = self[key].get(name)
                yield Row(f"{key}.{name}", value, written(found.raw), found.source)
            if not entries:
                # A path may name variables that are not set here, but where it is needed.
                value = self.raw(key) if setting.kind.is_path else self[key]
                yield Row(key, value, written(self.raw(key)), self.source(key))

    def _entries(self, key: str) -> dict[str, Found]:
        begin = f"{key}."
        return {
            name.removeprefix(begin): found
            for name, found in self._found.items()
            if name.startswith(begin)
        }

    def __iter__(self) -> Iterator[str]:
        return iter(BY_KEY)

    def __len__(self) -> int:
        return len(BY_KEY)


def written(raw: Any) -> str:
    """A value as a reader would write it into a file."""
    if raw is None or isinstance(raw, (bool, list, tuple, dict)):
        return json.dumps(raw)
    return str(raw)


def _filled_in(path: str, environ: Mapping[str, str], where: str) -> str:
    """Fill in the home folder and the variables that a path names."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in environ:
            raise ConfigError(f"{where}: {path} names ${name}, which is not set here")
        return environ[name]

    return os.path.expanduser(re.sub(r"\$(?:(\w+)|\{(\w+)\})", value, path))


# -- What one place says --------------------------------------------------------------------------


def from_program(values: Mapping[str, Any]) -> Layer:
    """What a program sets, by dotted keys, nested or both."""
    return layer_of(_leaves(values, (), "hpcdask.config.set"))


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...], source: str) -> Iterator[Leaf]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, str(name)), source)
        else:
            yield Leaf((*path, str(name)), _plain(value), source)


def _plain(value: Any) -> Any:
    """A value as JSON can carry it, to the processes that are to know of it."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def layer_of(leaves: Iterable[Leaf]) -> Layer:
    """Sort out what values are for.

    Raises
    ------
    ConfigError
        If there is no such setting, one is given twice, or it cannot be so.
    """
    layer = Layer()
    for path, raw, source in leaves:
        pieces = [piece for name in path for piece in name.split(".")]
        is_theirs = pieces[0] == _THEIRS
        spot = _place(pieces[is_theirs:])
        key = ".".join(pieces[is_theirs:])
        if spot is not None:
            _add(layer, spot[0], ".".join(pieces[is_theirs:][spot[1] :]), raw, source)
        elif is_null(raw) and (not key or _is_section(key.replace("_", "-"))):
            continue  # all that it had is commented out
        elif is_theirs:
            layer.foreign[".".join(pieces)] = source
        else:
            raise ConfigError(f"{source}: {_unknown(key)}")
    return layer


def from_environ(environ: Mapping[str, str]) -> Layer:
    """What variables set.

    A variable of ours that is no setting is left alone if nothing tells that it is meant to be one:
    environment modules and job scripts have variables of their own.

    Raises
    ------
    ConfigError
        If a variable is no setting but named like one, or a setting cannot be so.
    """
    layer = Layer()
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable in VARIABLES:
            continue
        key, entry = _BY_VARIABLE.get(variable), ""
        if key is None:
            names = variable.removeprefix(PREFIX).split("__")
            spot = _place([name.lower() for name in names])
            if spot is not None:
                key, entry = spot[0], "__".join(names[spot[1] :])
        if key is not None:
            _add(layer, key, entry, environ[variable], variable)
        elif refusal := _misspelt(variable):
            raise ConfigError(refusal)
    return layer


def _place(pieces: Sequence[str]) -> tuple[str, int] | None:
    """The setting that a path leads to, and how many of its pieces name it."""
    for n in range(1, len(pieces) + 1):
        setting = find(".".join(pieces[:n]).replace("_", "-"))
        if setting is not None:
            return setting.key, n
    return None


def _setting(key: str) -> Setting:
    """The setting of a key, by its first name.

    Raises
    ------
    KeyError
        If there is none.
    """
    setting = find(key)
    if setting is None or setting.key != key:
        raise KeyError(key)
    return setting


def _add(layer: Layer, key: str, entry: str, raw: Any, source: str) -> None:
    setting = _setting(key)
    is_variable = source.startswith(PREFIX)
    where = source if is_variable else f"{source}: {key}"
    if entry and not setting.kind.is_table:
        raise ConfigError(f"{where} takes a {setting.kind.name}, and no table of {entry!r}")
    try:
        if not setting.kind.is_table:
            setting.read(raw)
            entries = {key: raw}
        elif entry:
            setting.read({} if raw is None else {entry: raw})
            entries = {f"{key}.{entry}": raw}
        else:
            entries = {f"{key}.{name}": value for name, value in setting.read(raw).items()}
    except ConfigError as exc:
        raise ConfigError(f"{where}: {exc}") from None
    for name, value in entries.items():
        # Files of dask-jobqueue have old names too, with nothing behind them.
        before = layer.found.get(name)
        if before is None or _is_nothing(before.raw):
            layer.found[name] = Found(value, source)
        elif not _is_nothing(value):
            raise ConfigError(f"{name} is set twice: {before.source} and {source}")


def _is_nothing(raw: Any) -> bool:
    return is_null(raw) or raw == []


# -- What was meant -------------------------------------------------------------------------------


def _unknown(key: str) -> str:
    key = key.replace("_", "-")
    if _is_section(key):
        return f"{key!r} is a section, with settings of its own: {', '.join(_inside(key))}"
    last = key.rpartition(".")[2]
    elsewhere = [each for each in BY_KEY if each.rpartition(".")[2] == last]
    if own := jobs.own_section(key):
        hint = _nearest(last, jobs.WORDS)
        hint = f"{own}.{hint}" if hint else ""
    else:
        hint = _nearest(key, elsewhere, 0.0) or _nearest(key, BY_KEY)
    cure = f"did you mean {hint!r}?" if hint else "'hpc-dask config' lists all"
    return f"there is no setting {key!r}; {cure}"


def _is_section(key: str) -> bool:
    return key in SECTIONS or (bool(key) and key == jobs.own_section(key))


def _inside(section: str) -> list[str]:
    if jobs.own_section(section):
        return jobs.own_keys(section)
    return [key for key in BY_KEY if key.startswith(f"{section}.")]


def _misspelt(variable: str) -> str:
    """What is wrong with a variable that is no setting; empty if it is none of our business."""
    is_meant = "__" in variable or variable.startswith("HPCDASK_COMM_")
    names = [each.removeprefix(PREFIX) for each in (*_BY_VARIABLE, *VARIABLES)]
    if own := jobs.own_section(variable.removeprefix(PREFIX).lower().replace("__", ".")):
        keys = [key.replace(".", "__").replace("-", "_") for key in jobs.own_keys(own)]
        names += map(str.upper, keys)
    meant = _nearest(variable.removeprefix(PREFIX), names, 0.6 if is_meant else _ALIKE)
    if not meant and not is_meant:
        return ""
    cure = f"did you mean {PREFIX}{meant}?" if meant else "'hpc-dask config' lists all"
    return f"the environment sets {variable}, which is no setting; {cure}"


def _nearest(name: str, names: Iterable[str], bound: float = 0.6) -> str:
    import difflib  # only those who have mistyped need it

    return next(iter(difflib.get_close_matches(name, list(names), 1, bound)), "")
