# make run      install into .venv and run examples/stdlib_census.py on four MPI ranks
# make test     install into .venv and run every check and test
# make chaos    ten minutes of killed, stopped and cut-off processes; CHAOS_SECONDS and CHAOS_SEED
# make soak     simulate clusters with faults for SOAK_SECONDS (600), on all cores
# make bench    compare with dask.distributed
# make profile  show where the time of a task goes, per process; ROW=chain chooses the work
# make docs     build the documentation into build/docs
# make clean    remove what these made, .venv too
#
# PYTHON=python3.12 chooses the interpreter of a new .venv, NP=8 the number of ranks of `make run`.

PYTHON ?= python3
NP ?= 4
ROW ?= noop
VENV := .venv

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Open MPI refuses to run as root, as in a container, unless told twice. No effect on other users.
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
# More ranks than cores are fine, and a rank must not be bound to one core: its worker has threads.
export MPIRUN := mpirun --map-by :OVERSUBSCRIBE --bind-to none

.PHONY: run test soak chaos bench profile docs bytecode clean

run: $(VENV)/.installed-mpi,yaml bytecode
	@$(MPIRUN) -np $(NP) hpc-dask run examples/stdlib_census.py

test: $(VENV)/.installed-mpi,test,docs $(VENV)/mpich/.installed bytecode
	@tests/run-all.sh

# Half of the time on a LocalCluster, half on hosts in network namespaces, where root can make them.
chaos: $(VENV)/.installed-mpi,test bytecode
	@tests/system-packages.sh
	@CHAOS_SECONDS=$${CHAOS_SECONDS:-600} python -m pytest -s --tb=short tests/chaos/test_chaos.py

soak: $(VENV)/.installed-mpi,test,docs
	@python tests/simulation/soak.py

bench: $(VENV)/.installed-mpi,bench bytecode
	@python -m benchmarks

profile: $(VENV)/.installed-mpi,bench bytecode
	@python -m benchmarks.profile $(ROW)

docs: $(VENV)/.installed-docs
	@sphinx-build -W --keep-going -q docs build/docs
	@echo "built build/docs/index.html"

# As an installed package has it. In containers Python is often told not to write any, and then each
# of many processes would compile the whole package again, which takes 0.1 s.
bytecode: | $(VENV)/bin/python
	@-$(VENV)/bin/python -m compileall -q hpcdask

# The file name lists the extras that are installed; it is older than pyproject.toml when they may
# have changed. The package itself is installed in place, so edits to it need nothing.
$(VENV)/.installed-%: pyproject.toml | $(VENV)/bin/python
	@echo "installing hpcdask[$*] into $(VENV); the first time may take a minute"
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[$*]'
	@touch '$@'

# A second MPI for the tests, in a folder of its own: both have an mpirun.
$(VENV)/mpich/.installed: | $(VENV)/bin/python
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --prefix $(VENV)/mpich mpich
	@touch '$@'

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "hpcdask needs Python 3.10 or later; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	        "Choose another: make PYTHON=python3.12" >&2; \
	    exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu, as root:" >&2; \
	    $(PYTHON) -c 'import sys; print("    apt-get install python%d.%d-venv" % sys.version_info[:2])' >&2; \
	    exit 1; }
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
