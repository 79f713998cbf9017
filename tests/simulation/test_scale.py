"""The measurement of scale runs, and what it finds does not grow with the number of workers."""

from __future__ import annotations

import pytest
import scale


def test_every_task_runs_once_and_the_table_has_a_row_for_each_size(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert scale.measure(10, 500).n_done == 500
    scale.main(["--tasks", "200", "--workers", "1", "20"])
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert rows == ["workers", "1", "20", "1", "20"]
