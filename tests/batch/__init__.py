"""Real batch systems for tests: Slurm, Grid Engine, and PBS as a front end to Slurm.

Each runs with its own configuration, ports and spool in a folder of its own, so it meets no batch
system of the machine and no other run of the tests. A test asks for the fixture `slurm`, `sge` or
`pbs`. The first one starts the daemons, which stay for the session, and end with it by a janitor.
"""
