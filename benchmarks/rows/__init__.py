"""All rows of the table, by theme; collections of dask will be one more module."""

from benchmarks.figures import Row

from . import data, jobqueue, life, mpi, registration, scheduler, throughput

ROWS: dict[str, Row] = {
    **throughput.ROWS,
    **data.ROWS,
    **life.ROWS,
    **mpi.ROWS,
    **jobqueue.ROWS,
    **scheduler.ROWS,
    **registration.ROWS,
}
