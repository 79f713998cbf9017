"""dask's collections: their graphs as tasks of a cluster, and clients as dask's scheduler.

Only `programs` is needed on workers, and only there dask is not imported: tasks that use it do so.
"""
