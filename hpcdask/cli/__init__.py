"""The command `hpc-dask`: one file per subcommand."""
