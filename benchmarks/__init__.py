"""Speed of hpcdask beside the installed dask.distributed: ``python -m benchmarks --help``.

`systems` says who runs, `rows` what is measured and what must be reached, `tasks` what the workers
compute and `works` the graphs of them, `one` takes a single measurement in a process of its own,
`report` makes the table. `profile` shows where the time goes.
"""
