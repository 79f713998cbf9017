"""Tables of a size of one's choice, as files in two formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

_CITIES = np.array(["Ahlen", "Bonn", "Celle", "Düren", "Emden", "Fulda", "Gera"])
#: Bytes of a row in a CSV file, about.
_ROW = 45


def write_tables(folder: Path, megabytes: float, n_files: int) -> None:
    """Write sales.N.csv, sales.N.parquet and people.parquet.

    Parameters
    ----------
    megabytes : float
        Size of all CSV files.
    """
    rows = int(megabytes * 1e6 / _ROW / n_files)
    n_people = max(rows * n_files // 50, 10)
    rng = np.random.default_rng(7)
    for i in range(n_files):
        sales = pd.DataFrame(
            {
                # Not in order: it is what set_index sorts by.
                "id": rng.permutation(np.arange(i, rows * n_files, n_files)),
                "person": rng.integers(0, n_people, rows),
                "amount": rng.integers(1, 100_000, rows) / 8,
                "day": pd.Timestamp("2026-01-01")
                + pd.to_timedelta(rng.integers(0, 365, rows), "D"),
                "city": _CITIES[rng.integers(0, len(_CITIES), rows)],
            }
        )
        sales.to_csv(folder / f"sales.{i:02}.csv", index=False)
        sales.to_parquet(folder / f"sales.{i:02}.parquet", index=False)
    people = pd.DataFrame({"person": np.arange(n_people), "group": rng.integers(0, 12, n_people)})
    people.to_parquet(folder / "people.parquet", index=False)
