"""Which plugins a process is to have: what it lacks, and what it should not have any more."""

from __future__ import annotations

from hpcdask.core.plugins import Plugin, PluginRegistry

A, B = Plugin("a", "1", b"code of a"), Plugin("b", "2", b"code of b")


def registry(*plugins: Plugin) -> PluginRegistry:
    made = PluginRegistry()
    for plugin in plugins:
        assert made.registered(plugin, idempotent=False)
    return made


def test_a_process_that_comes_lacks_all_plugins_in_the_order_of_their_registration() -> None:
    assert registry(A, B).missing(()) == [A, B]
    assert registry(B, A).missing(()) == [B, A]


def test_one_that_comes_back_lacks_what_was_registered_meanwhile() -> None:
    assert registry(A, B).missing(["1"]) == [B]


def test_a_second_plugin_of_a_name_takes_the_place_of_the_first() -> None:
    plugins, other = registry(A, B), A._replace(registration="3")
    assert plugins.registered(other, idempotent=False)
    assert plugins.missing(()) == [B, other]
    assert plugins.missing(["1", "2"]) == [other]
    assert plugins.outdated(["1", "2"]) == []  # setting up the other one replaces it


def test_an_idempotent_one_leaves_the_first_alone() -> None:
    plugins = registry(A)
    assert not plugins.registered(A._replace(registration="3"), idempotent=True)
    assert plugins.missing(()) == [A]


def test_the_same_registration_said_twice_changes_nothing() -> None:
    assert not registry(A).registered(A, idempotent=False)


def test_what_was_unregistered_is_outdated_where_it_still_is() -> None:
    plugins = registry(A, B)
    assert plugins.unregistered("a")
    assert not plugins.unregistered("a")
    assert plugins.missing(()) == [B]
    assert plugins.outdated(["1", "2"]) == ["a"]


def test_what_only_the_scheduler_before_has_known_may_stay() -> None:
    assert registry(B).outdated(["1"]) == []


def test_what_was_unregistered_and_registered_again_is_not_outdated() -> None:
    plugins = registry(A)
    plugins.unregistered("a")
    assert plugins.registered(A, idempotent=False)
    assert plugins.outdated(["1"]) == []
