"""Which hosts an SSH cluster uses: read from text, put together, and chosen."""

from __future__ import annotations

import pytest

from hpcdask import __version__
from hpcdask.errors import ConfigError
from hpcdask.launchers.ssh_errors import why_another_version, why_not_started
from hpcdask.launchers.ssh_hosts import (
    Load,
    choose_hosts,
    choose_surplus,
    known_address,
    make_hosts,
    parse_host,
    read_hostfile,
)


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("node1", "node1", {}),
        ("ann@node1.example.org", "node1.example.org", {"username": "ann"}),
        ("node1:2222", "node1", {"port": 2222}),
        ("ann@10.0.0.3:22", "10.0.0.3", {"username": "ann", "port": 22}),
        ("fd00::1", "fd00::1", {}),
        ("[fd00::1]:2222", "fd00::1", {"port": 2222}),
        ("::1", "::1", {}),
        ("fe80::1%eth0", "fe80::1%eth0", {}),
        ("dom\\ann@node1", "node1", {"username": "dom\\ann"}),
    ],
)
def test_a_host_is_a_name_perhaps_with_a_user_and_a_port(text, name, options):
    assert parse_host(text) == (name, options)


@pytest.mark.parametrize(
    "text", ["", "a b", "node1:", "node1:0", "node1:65536", "@node1", "-oX=y;"]
)
def test_what_is_no_host_is_refused(text):
    with pytest.raises(ConfigError, match="is no host"):
        parse_host(text)


def test_a_hostfile_may_have_comments_and_blank_lines(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# ours\n\nnode1\n  ann@node2:2222  # the fast one\nnode3 node4\n#node5\n")
    assert read_hostfile(str(path)) == ["node1", "ann@node2:2222", "node3", "node4"]


def test_a_line_of_a_hostfile_that_is_no_host_is_named(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("node1\nnode2 slots=4\n")
    with pytest.raises(ConfigError, match=rf"{path}, line 2: 'slots=4' is no host"):
        read_hostfile(str(path))
    with pytest.raises(ConfigError, match="cannot read the hostfile missing: No such file"):
        read_hostfile("missing")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="it is no text"):
        read_hostfile(str(path))


def test_options_are_for_all_hosts_or_for_each_and_the_text_of_a_host_decides():
    one, two = make_hosts(["a", "bob@b:23"], {"username": "ann", "port": 22}, None, "python3")
    assert one.options == {"username": "ann", "port": 22}
    assert two.options == {"username": "bob", "port": 23}
    assert one.python == two.python == "python3"
    one, two = make_hosts(["a", "b"], [{"port": 1}, {"port": 2}], ["p1", "p2"], "python3")
    assert [one.options["port"], two.options["port"]] == [1, 2]
    assert [one.python, two.python] == ["p1", "p2"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (([], None, None), "at least one host"),
        (("node1", None, None), "must be a list"),
        ((["a", "b"], [{}], None), "connect_options has 1 items for 2 hosts"),
        ((["a", "b"], None, ["p", "p", "p"]), "remote_python has 3 items for 2 hosts"),
    ],
)
def test_hosts_and_options_that_do_not_go_together_are_refused(arguments, why):
    with pytest.raises(ConfigError, match=why):
        make_hosts(*arguments, "python3")


def test_a_password_is_not_shown():
    [host] = make_hosts(["a"], {"password": "secret"}, None, "python3")
    assert "secret" not in repr(host)
    assert "secret" not in host.ssh


def test_a_host_is_known_to_the_others_at_the_address_where_it_was_reached():
    assert known_address("10.0.0.1", ["10.0.0.2"]) == "10.0.0.1"
    assert known_address("127.0.0.1", ["127.0.0.1", "::1"]) == "127.0.0.1"
    assert known_address("127.0.0.1", []) == "127.0.0.1"
    assert known_address("127.0.0.1", ["127.0.0.1", "10.0.0.2"]) == ""
    assert known_address("127.0.0.1", [""]) == ""
    assert known_address("fe80::1%eth0", ["fe80::2%eth0"]) == ""
    assert known_address("", ["10.0.0.2"]) == ""


def test_a_host_with_an_old_python_or_another_version_is_of_no_use():
    [host] = make_hosts(["node1"], None, None, "python3")
    assert why_another_version(host, __version__, "3.12.1") == ""
    assert "python3 on node1 is Python 3.9.18, and" in why_another_version(host, "1.0", "3.9.18")
    assert why_another_version(host, "0.0.9", "3.10.0").startswith(
        "node1 has hpcdask 0.0.9, and we"
    )


@pytest.mark.parametrize(
    ("code", "said", "why"),
    [
        (127, "bash: line 1: /x: No such file", "there is no Python 'p' on node1: bash: line 1"),
        (1, "p: Command not found.", "there is no Python 'p' on node1: p: Command not found."),
        (126, "bash: /x: Permission denied", "'p' on node1 cannot be run: bash"),
        (1, "/x: No module named hpcdask", "p on node1 has no hpcdask: pip install hpcdask=="),
        (1, "No module named 'hpcdask'", "p on node1 has no hpcdask: pip install hpcdask=="),
        (1, "No module named hpcdask.launchers.remote", "hpcdask on node1 is too old: No module"),
        (3, "  \n", "p on node1 exited with code 3 before hpcdask had started: it printed nothing"),
    ],
)
def test_a_process_that_does_not_start_is_explained_by_what_it_says(code, said, why):
    [host] = make_hosts(["node1"], None, "p", "python3")
    assert why_not_started(host, code, f"exited with code {code}", said).startswith(why)


# -- Which host gets a worker ---------------------------------------------------------------------


def test_workers_are_spread_over_the_hosts():
    assert choose_hosts([Load(0, 1), Load(0, 1), Load(0, 1)], 4) == [0, 1, 2, 0]
    assert choose_hosts([Load(2, 1), Load(0, 1), Load(1, 1)], 3) == [1, 1, 2]


def test_a_host_that_is_planned_to_carry_more_gets_more():
    assert sorted(choose_hosts([Load(0, 1), Load(0, 3)], 4)) == [0, 1, 1, 1]


def test_a_host_that_failed_lately_gets_workers_only_if_there_is_no_other():
    assert choose_hosts([Load(0, 1, False), Load(3, 1)], 2) == [1, 1]
    assert choose_hosts([Load(0, 1, False), Load(0, 1, False)], 2) == [0, 1]


def test_the_youngest_of_the_fullest_host_end_first():
    workers = [("0", 0), ("1", 1), ("2", 1), ("3", 0), ("4", 1)]
    assert choose_surplus(workers, [1, 1], 1) == ["4"]
    assert choose_surplus(workers, [1, 1], 3) == ["4", "2", "3"]
    assert sorted(choose_surplus(workers, [1, 1], 5)) == ["0", "1", "2", "3", "4"]
    assert choose_surplus(workers, [1, 1], 0) == []
    assert choose_surplus(workers, [1, 3], 1) == ["3"]
