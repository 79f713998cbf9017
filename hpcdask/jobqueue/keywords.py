"""Keywords of the `Job` classes: given, or else configured; those of old, and what was meant."""

from __future__ import annotations

import difflib
import inspect
import os
import re
import warnings
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from hpcdask import config
from hpcdask.config import jobs, kinds
from hpcdask.config.jobs import Word
from hpcdask.config.settling import Settings
from hpcdask.errors import ConfigError
from hpcdask.host import parse_walltime

#: Keywords of earlier days, and those in their place. A name is that of the workers here.
_OTHERS = {
    other.replace("-", "_"): jobs.WORDS[name].keyword
    for other, name in jobs.OTHER_NAMES.items()
    if other != "name"
}
#: Who calls a project what others call an account.
_WITH_PROJECTS = ("sge", "lsf", "oar")
#: What the names of our modules begin with.
_OURS = __name__.partition(".")[0] + "."

#: Keywords that are about another, and mean nothing without it.
_ABOUT = {
    "cores": ("processes", "job_cpu", "resource_spec"),
    "memory": ("job_mem", "resource_spec"),
}


def changed(given: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of a job that is to be like another, but for some of them.

    Parameters
    ----------
    given : mapping
        What was given for the other.
    changes : mapping
        What is given for this one. A number of processes does not outlive a change of the cores
        that they share, and so on.
    """
    new = {_OTHERS.get(keyword, keyword) for keyword in changes}
    new |= {keyword for other in new for keyword in _ABOUT.get(other, ())}
    kept = {_OTHERS.get(keyword, keyword): value for keyword, value in given.items()}
    return {keyword: kept[keyword] for keyword in kept.keys() - new} | dict(changes)


def settled(
    owner: str, system: str, section: str, is_named: bool, given: Mapping[str, Any]
) -> dict[str, Any]:
    """The value of every keyword that jobs of a system have.

    Parameters
    ----------
    owner : str
        The class, for messages.
    system : str
        Its name.
    section : str
        Of the configuration, below ``jobqueue``.
    is_named : bool
        Whether somebody has chosen that section, which then has to be there.
    given : mapping
        By keyword; None is as good as nothing.

    Raises
    ------
    TypeError
        If there is no such keyword; it says which was meant.
    ConfigError
        If one has a value that it cannot have, or nothing is configured in that section.
    """
    settings, section = config.current(), section.replace("_", "-")
    if is_named:
        _refuse_section(settings, system, section)
    words = {word.keyword: word for word in jobs.words_of(system)}
    found = _renamed(owner, system, given)
    for keyword in found:
        if keyword not in words:
            raise TypeError(_unknown(owner, keyword, words))
    return {
        keyword: _value(settings, owner, f"jobqueue.{section}.{word.name}", word, found)
        for keyword, word in words.items()
    }


def _refuse_section(settings: Settings, system: str, section: str) -> None:
    """A section of the user's own has to be there; a misspelt one would be all defaults."""
    own = settings.own_sections()
    if section == system or f"jobqueue.{section}" in own:
        return
    if section in jobs.SYSTEMS:
        raise ConfigError(
            f"config_name={section!r}: the section jobqueue.{section} is for another batch system "
            f"than {system}; give a section of your own another name"
        )
    there = ", ".join([*own, f"jobqueue.{system}"])
    raise ConfigError(
        f"config_name={section!r}: nothing is configured in a section jobqueue.{section}; there "
        f"is {there}"
    )


def _renamed(owner: str, system: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given, by the names of today."""
    found = {keyword: value for keyword, value in given.items() if value is not None}
    for old in [keyword for keyword in found if keyword in _OTHERS]:
        new = _OTHERS[old]
        if new in found:
            raise ConfigError(f"{owner}: {old} is another name of {new}; give one of them")
        if old != "project" or system not in _WITH_PROJECTS:
            warnings.warn(
                f"{owner}({old}=) is deprecated; write {new}= in its place",
                FutureWarning,
                stacklevel=_callers_level(),
            )
        found[new] = found.pop(old)
    return found


def _callers_level() -> int:
    """How far above our caller's frame the first one is that is not of hpcdask: the user's line."""
    level, frame = 1, inspect.currentframe()
    frame = frame and frame.f_back
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_OURS):
        level, frame = level + 1, frame.f_back
    return level


def _unknown(owner: str, keyword: str, words: Mapping[str, Word]) -> str:
    elsewhere = jobs.WORDS.get(keyword.replace("_", "-"))
    if elsewhere is not None and elsewhere.is_keyword:
        return f"{owner} has no keyword {keyword!r}, which is for {', '.join(elsewhere.systems)}"
    meant = difflib.get_close_matches(keyword, words, 1)
    cure = f"did you mean {meant[0]!r}?" if meant else f"there are {', '.join(words)}"
    return f"{owner} has no keyword {keyword!r}; {cure}"


def _value(settings: Settings, owner: str, key: str, word: Word, given: Mapping[str, Any]) -> Any:
    raw = given.get(word.keyword)
    if raw is None:
        return settings[key]
    try:
        value = settings.value(key, _plain(word, raw))
    except ConfigError as exc:
        raise ConfigError(f"{owner}({word.keyword}=): {exc}") from None
    if word.kind is kinds.PATH:
        return os.path.expanduser(os.path.expandvars(value))
    return value


def _plain(word: Word, raw: Any) -> Any:
    """A value of Python as a file of the configuration would have it."""
    if isinstance(raw, timedelta):
        return f"{raw.total_seconds():g}s"
    if isinstance(raw, os.PathLike):
        return os.fspath(raw)
    if word.kind is kinds.LIST:
        if isinstance(raw, str):  # one item, with any commas in it
            return [raw]
        if isinstance(raw, Mapping):  # as HTCondor's directives are often kept
            return [f"{name} = {value}" for name, value in raw.items()]
    return raw


def read_walltime(text: str, units: tuple[int, int]) -> int:
    """Seconds of a walltime, of which the short forms are read as the system would.

    Parameters
    ----------
    text : str
        As of `parse_walltime`, or ``"30"``, ``"1:30"``, ``"1-12"``.
    units : tuple of int
        Seconds of a bare number's unit, and of the unit that is left of a single colon.

    Raises
    ------
    ConfigError
        If it has none of these forms, or is no time at all.
    """
    bare, left = units
    if re.fullmatch("0*[1-9][0-9]*", text):
        return int(text) * bare
    if pair := re.fullmatch("([0-9]+):([0-5]?[0-9])", text):
        seconds = (int(pair[1]) * 60 + int(pair[2])) * (left // 60)
        return seconds or parse_walltime("0:0:0")  # which says that this is too little
    if days := re.fullmatch("([0-9]+)-([0-9]+)(?::([0-9]+))?", text):
        return parse_walltime(f"{days[1]}-{days[2]}:{days[3] or 0}:0")
    return parse_walltime(text)
