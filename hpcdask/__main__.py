"""``python -m hpcdask``: the same as the command ``hpc-dask``."""

from hpcdask.cli.main import main

main(prog_name="hpc-dask")
