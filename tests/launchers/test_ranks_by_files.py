"""Ranks that agree through files."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from waiting import wait_until

from hpcdask.errors import ConfigError, LaunchError
from hpcdask.launchers.file_ranks import FileRanks
from hpcdask.launchers.meeting import find_ranks, go_on_together
from hpcdask.launchers.part import share_contact
from hpcdask.launchers.ranks import Ranks
from hpcdask.rendezvous import Contact, new_token
from hpcdask.world import World

CONTACT = Contact("Scheduler", "id", "tcp://10.0.0.1:1", "", new_token(), 1.0, "1", "h", 1, "")


def rank_of(folder, rank, size=2, timeout=20.0):
    return FileRanks(World(rank, size, 0, 1, "test", "launch/1@a"), folder, timeout)


def together(folder, size, work, first=None):
    """What `work(ranks)` returns on each of `size` ranks, that run at the same time."""

    def run(rank):
        with rank_of(folder, rank, size) as ranks:
            if first is None:
                assert ranks.gather_on_all(rank) == list(range(size))
            return work(ranks)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))


def test_all_ranks_get_what_one_shares_and_nothing_is_left(tmp_path):
    def work(ranks):
        shared = ranks.share({"from": ranks.world.rank}, root=2)
        return shared, ranks.gather(ranks.world.rank * 10), ranks.count_here(lambda rank: rank > 1)

    outcome = together(tmp_path, 5, work)
    assert [shared for shared, _, _ in outcome] == [{"from": 2}] * 5
    assert [g for _, g, _ in outcome] == [[0, 10, 20, 30, 40], None, None, None, None]
    assert [n for _, _, n in outcome] == [3] * 5  # by the name of the host
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_launch_has_left_is_not_taken_for_this_ones(tmp_path):
    killed = [rank_of(tmp_path, rank) for rank in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda ranks: ranks.gather_on_all("old"), killed))
        list(pool.map(lambda ranks: ranks.share("old"), killed))
    [folder] = tmp_path.iterdir()
    left = len(list(folder.iterdir()))
    assert left >= 4
    early = rank_of(tmp_path, 1)
    with ThreadPoolExecutor(2) as pool:
        of_early = pool.submit(lambda: (early.gather_on_all("new"), early.share("new 1")))
        # It has said hello, in place of who was there before, and reads the old session.
        wait_until(lambda: early._me in (folder / "hello-1").read_text(), 10)
        late = rank_of(tmp_path, 0)
        assert late.gather_on_all("new 0") == ["new 0", "new"]
        assert late.share("new 0") == "new 0"
        assert of_early.result(20) == (["new 0", "new"], "new 0")


def test_a_problem_of_one_rank_is_raised_on_all_with_its_name(tmp_path):
    def work(ranks):
        problem = ConfigError("no module") if ranks.world.rank == 1 else None
        with pytest.raises(ConfigError, match=r"^rank 1 on \S+: no module$"):
            go_on_together(ranks, problem)
        return ranks.world.rank

    assert together(tmp_path, 3, work, first=go_on_together) == [0, 1, 2]


def test_a_problem_of_all_ranks_is_raised_as_it_is(tmp_path):
    def work(ranks):
        with pytest.raises(LaunchError, match=r"^no$"):
            go_on_together(ranks, OSError("no"))
        return ranks.world.rank

    assert together(tmp_path, 3, work, first=go_on_together) == [0, 1, 2]
    assert go_on_together(Ranks(World()), None) is None


def test_the_contact_is_shared_in_private_files(tmp_path):
    modes = []

    def work(ranks):
        contact = share_contact(ranks, lambda: CONTACT)
        if ranks.world.rank == 0:
            [folder] = tmp_path.iterdir()
            modes.append(stat.S_IMODE(folder.stat().st_mode))
            modes.extend(stat.S_IMODE(path.stat().st_mode) for path in folder.glob("share-*"))
        return contact

    assert together(tmp_path, 3, work) == [CONTACT] * 3
    assert modes == [0o700, 0o600]


@pytest.mark.parametrize("error", [OSError(13, "no"), LaunchError("no"), ZeroDivisionError("no")])
def test_the_error_of_one_is_raised_on_all(tmp_path, error):
    def start():
        raise error

    def work(ranks):
        with pytest.raises(LaunchError, match="no"):
            share_contact(ranks, start)
        return ranks.world.rank

    assert together(tmp_path, 3, work) == [0, 1, 2]


def test_ranks_that_never_come_are_named(tmp_path):
    ranks = rank_of(tmp_path, 0, 3, timeout=0.1)
    with ranks, pytest.raises(LaunchError, match=r"waited 0.1 s for rank 1, 2 of 3 to come"):
        ranks.gather_on_all(None)
    late = rank_of(tmp_path, 1, 3, timeout=0.1)
    with pytest.raises(LaunchError, match=r"rank 1 has waited .* for rank 0 to come"):
        late.gather_on_all(None)
    assert list(tmp_path.iterdir()) == []  # who is too late leaves no folder for later


def test_who_waits_is_told_that_the_others_have_ended(tmp_path):
    waiting = rank_of(tmp_path, 1)
    with ThreadPoolExecutor(1) as pool:
        outcome = pool.submit(waiting.gather_on_all, None)
        [folder] = tmp_path.iterdir()
        wait_until((folder / "hello-1").exists, 10)
        with rank_of(tmp_path, 0):
            pass
        with pytest.raises(LaunchError, match="the other ranks have ended"):
            outcome.result(20)


def test_a_folder_that_cannot_be_used_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LaunchError, match=r"ranks cannot meet in .*Name a file .*--scheduler-file"):
        rank_of(tmp_path / "file", 0)
    with pytest.raises(LaunchError, match=r"the folder \S+/missing does not exist"):
        rank_of(tmp_path / "missing", 0)


def test_a_folder_of_others_is_refused(tmp_path):
    folder = tmp_path / "ranks-launch_1_a"
    folder.mkdir(0o777)
    folder.chmod(0o777)
    with pytest.raises(LaunchError, match="is open to other users"):
        rank_of(tmp_path, 0)
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(LaunchError, match="is not a folder of yours"):
        rank_of(tmp_path, 0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(LaunchError, match="ranks cannot meet"):
        rank_of(tmp_path, 0)


def test_without_a_launcher_there_is_one_rank():
    ranks = find_ranks(environ={})
    assert type(ranks) is Ranks
    assert (ranks.world, ranks.share(1), ranks.gather(2), ranks.count_here(lambda r: True)) == (
        World(),
        1,
        [2],
        1,
    )


def test_ranks_without_a_common_name_are_told_what_to_do(tmp_path):
    environ = {"PMI_RANK": "0", "PMI_SIZE": "3", "MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "0"}
    with pytest.raises(ConfigError, match="install mpi4py, or set HPCDASK_LAUNCH_ID"):
        find_ranks(use_mpi=False, environ=environ)
    named = {**environ, "HPCDASK_LAUNCH_ID": "one"}
    ranks = find_ranks(use_mpi=False, folder=tmp_path, environ=named)
    assert type(ranks) is FileRanks
    assert ranks.world.size == 3


def test_without_a_scheduler_file_ranks_meet_in_the_users_cache(tmp_path):
    environ = {"HPCDASK_RANK": "0", "HPCDASK_SIZE": "2", "HPCDASK_LAUNCH_ID": "one"}
    ranks = find_ranks(environ={**environ, "XDG_CACHE_HOME": str(tmp_path)})
    assert ranks.how == f"through files in {tmp_path}/hpcdask/ranks-one"
