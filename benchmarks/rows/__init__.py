"""All rows of the table, by theme."""

from benchmarks.figures import Row

from . import collections, data, jobqueue, life, mpi, registration, scheduler, throughput

ROWS: dict[str, Row] = {
    **throughput.ROWS,
    **data.ROWS,
    **collections.ROWS,
    **life.ROWS,
    **mpi.ROWS,
    **jobqueue.ROWS,
    **scheduler.ROWS,
    **registration.ROWS,
}
