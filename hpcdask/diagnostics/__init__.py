"""Names where programs for dask.distributed look for them."""
