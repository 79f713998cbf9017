"""``hpc-dask doctor``: would a cluster work here, and if not, what is in its way?

Every rank looks at its own host (`probes`); rank 0 collects what they found and has hosts try each
other (`station`, `meeting`, `examination`). What that means is decided by functions of the facts
alone (`checks`), and printed by one more (`report`).
"""
