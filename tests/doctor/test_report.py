"""The report, from made-up facts."""

from __future__ import annotations

import json

import pytest
from made_up import cut, examination

from hpcdask.doctor.checks import check
from hpcdask.doctor.report import document, report

MANY = tuple(f"node{number:03d}" for number in range(1, 501))


def text_of(made, **options):
    return report(made, check(made), **options)


def test_all_is_well_on_one_screen():
    lines = text_of(examination("a", "b", "c")).splitlines()
    assert lines[0] == "hpc-dask 0.1.0 doctor, 3 hosts, 3 of 3 ranks, 2.5 s: all is well"
    assert len(lines) <= 24
    assert "hosts        a, b and c with 1 rank, started by Slurm's srun" in lines
    assert "CPUs         8 of 64 (affinity)" in lines
    assert "memory       32.00 GiB (SLURM_MEM_PER_NODE)" in lines
    assert "open files   65536, 260 needed for 2 workers" in lines


def test_failures_come_first_with_their_cures_then_notes_then_facts():
    made = examination("a", "b")
    cut(made, "a", "b", "no answer within 3 s")
    made["hosts"]["b"]["scratch"].update(is_memory=True, filesystem="tmpfs")
    lines = text_of(made).splitlines()
    assert lines[0].endswith("1 would fail, 1 to note")
    assert lines[2] == "FAIL  a cannot reach b at 10.1.0.2:40000 (ib0): no answer within 3 s."
    assert lines[3].startswith("      -> see cable, routes and firewall")
    warn = next(n for n, line in enumerate(lines) if line.startswith("WARN  "))
    facts = next(n for n, line in enumerate(lines) if line.startswith("hosts "))
    assert 2 < warn < facts


def test_the_matrix_shows_each_direction():
    made = examination("a", "b")
    cut(made, "a", "b", "no answer within 3 s")
    lines = text_of(made).splitlines()
    head = next(n for n, line in enumerate(lines) if line.split() == ["ms", "a", "b"])
    assert lines[head + 1].split() == ["a", "0.1", "fails"]
    assert lines[head + 2].split() == ["b", "0.1", "0.1"]
    assert lines[head - 1].startswith("ib0          used, 10.1.0.1 and 10.1.0.2, 1 of 4 ways fail")


def test_five_hundred_hosts_with_trouble_fit_on_a_screen():
    made = examination(*MANY[:60])
    for name in MANY[:60]:
        cut(made, name, "node030", "Connection refused")
        made["hosts"][name]["scratch"]["free"] = 0
    made["hosts"]["node007"]["software"]["packages"] = {}
    text = text_of(made)
    assert len(text.splitlines()) < 50
    assert max(map(len, text.splitlines())) <= 100
    assert "is full on node001, node002, node003 and 57 more" in " ".join(text.split())


def test_more_findings_than_a_screen_has_lines_are_counted():
    made = examination("a", "b")
    made["hosts"]["b"]["software"]["packages"] = {f"package{n}": "1" for n in range(30)}
    text = text_of(made)
    assert text.count("FAIL  hosts have different versions") == 10
    assert "FAIL  and 23 more; see --json" in text


def test_what_differs_between_hosts_is_told_by_groups():
    made = examination("a", "b", "c")
    made["hosts"]["c"]["grants"].update(cpus=4, cpu_sources={"cgroup": 4})
    assert "CPUs         8 of 64 (affinity) (a and b); 4 of 64 (cgroup) (c)" in text_of(made)


def test_numbers_that_differ_between_hosts_are_told_by_the_least_and_the_most():
    made = examination(*MANY)
    for number, name in enumerate(MANY):
        made["hosts"][name]["spawning"]["seconds"] = 0.5 + number / 100
    made["hosts"]["node002"]["limits"]["open_files_hard"] = -1
    text = text_of(made)
    assert "of Python with hpcdask: 0.50 s (node001) to 5.49 s (node500)" in text
    assert "65536 (node001) to unlimited (node002)" in text
    assert len(text.splitlines()) < 40


def test_a_cure_of_several_failures_is_said_once():
    made = examination("a", "b", "c")
    for source, target in ("ac", "bc", "ca"):
        cut(made, source, target, "no answer within 3 s")
    text = text_of(made)
    assert text.count("FAIL  ") == 3
    assert text.count("-> see cable") == 1


@pytest.mark.parametrize("colours", [True, False])
def test_colours_only_if_asked_for(colours):
    made = examination("a", "b")
    cut(made, "a", "b", "x")
    assert ("\033[" in text_of(made, colours=colours)) == colours


def test_a_narrow_screen_wraps_lines():
    made = examination("a", "b")
    cut(made, "a", "b", "no answer within 3 s, since the way there is a very long and winding one")
    found = text_of(made, width=60).splitlines()[2:]
    assert max(map(len, found)) <= 60


def test_subjects_that_could_not_be_looked_at_are_left_out():
    made = examination("a", "b")
    for name in ("a", "b"):
        facts = made["hosts"][name]
        made["hosts"][name] = {"errors": dict.fromkeys(facts, "it did not end within 7 s")}
    assert "cannot find out about scratch on a and b" in text_of(made)


def test_the_document_holds_everything():
    made = examination("a", "b")
    cut(made, "a", "b", "x")
    content = json.loads(document(made, check(made)))
    assert content["ok"] is False
    assert content["findings"][0]["severity"] == "red"
    assert content["findings"][0]["hosts"] == ["a", "b"]
    assert set(content) == {"ok", "findings", *made}
    assert content["hosts"] == made["hosts"]
