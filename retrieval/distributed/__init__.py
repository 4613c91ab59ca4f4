"""Where work runs, never what it is: executors by name, and a Dask cluster as an executor."""
