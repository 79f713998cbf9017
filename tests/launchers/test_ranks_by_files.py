"""Ranks that agree through files."""

from __future__ import annotations

import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from hpcdask.errors import ConfigError, LaunchError
from hpcdask.launchers.part import share_contact
from hpcdask.launchers.ranks import FileRanks, Ranks, find_ranks
from hpcdask.rendezvous import Contact, new_token
from hpcdask.world import World

CONTACT = Contact("Scheduler", "id", "tcp://10.0.0.1:1", "", new_token(), 1.0, "1", "h", 1, "")


def together(folder, size, work, timeout=20.0):
    """What `work(ranks)` returns on each of `size` ranks, that run at the same time."""
    with ThreadPoolExecutor(size) as pool:
        worlds = [World(rank, size, rank, size, "test", "launch/1@a") for rank in range(size)]
        all_ranks = [FileRanks(world, folder, timeout) for world in worlds]
        return list(pool.map(work, all_ranks))


def test_all_ranks_get_what_one_shares(tmp_path):
    def work(ranks):
        shared = ranks.share({"from": ranks.world.rank}, root=2)
        gathered = ranks.gather(ranks.world.rank * 10, root=1)
        if ranks.world.rank == 1:
            ranks.clean_up()
        return shared, gathered

    outcome = together(tmp_path, 5, work)
    assert [shared for shared, _ in outcome] == [{"from": 2}] * 5
    assert [g for _, g in outcome] == [None, [0, 10, 20, 30, 40], None, None, None]
    assert list(tmp_path.iterdir()) == []


def test_the_contact_is_shared_in_private_files(tmp_path):
    modes = []

    def start():
        folder = next(tmp_path.iterdir())
        modes.append(stat.S_IMODE(folder.stat().st_mode))
        return CONTACT

    def work(ranks):
        contact = share_contact(ranks, start)
        if ranks.world.rank == 0:
            path = next(next(tmp_path.iterdir()).glob("*-share"))
            modes.append(stat.S_IMODE(path.stat().st_mode))
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


def test_a_rank_that_never_comes_is_named(tmp_path):
    ranks = FileRanks(World(1, 2, 0, 1, "test", "x"), tmp_path, 0.1)
    with pytest.raises(LaunchError, match=r"rank 1 has waited 0.1 s for rank 0 to write .*1-share"):
        ranks.share(None)
    assert list(tmp_path.iterdir()) == []  # who is too late leaves no folder for later


def test_who_is_late_is_told_that_the_others_have_ended(tmp_path):
    late = FileRanks(World(1, 2, 0, 1, "test", "x"), tmp_path, 20)
    first = FileRanks(World(0, 2, 0, 1, "test", "x"), tmp_path, 20)
    ending = threading.Thread(target=first.clean_up)
    ending.start()
    with pytest.raises(LaunchError, match="the other ranks have ended"):
        late.share(None)
    ending.join()


def test_a_folder_that_cannot_be_used_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LaunchError, match=r"ranks cannot meet in .*Name a file .*--scheduler-file"):
        FileRanks(World(0, 2, 0, 2, "test", "x"), tmp_path / "file", 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(LaunchError, match="ranks cannot meet"):
        FileRanks(World(0, 2, 0, 2, "test", "x"), tmp_path, 1)


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
