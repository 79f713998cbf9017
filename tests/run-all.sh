#!/usr/bin/env bash
# Every check and test. `make test` calls this with .venv/bin first in PATH and MPIRUN set.
#
# All stages run, so that one run shows all that is wrong; the exit code is that of the first stage
# that failed. Most of the time is waiting for other processes, so five parts run at a time; what the
# four beside have printed is shown when they have ended.
set -uo pipefail
# As in the Makefile, for who calls this without it: Open MPI wants to be told twice that root may.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
cd "$(dirname "${BASH_SOURCE[0]}")/.."

failed=()
first_code=0

stage() { # stage NAME COMMAND...
    local name=$1 code
    shift
    printf '== %s\n' "$name"
    "$@"
    code=$?
    if ((code != 0)); then
        failed+=("$name")
        ((first_code != 0)) || first_code=$code
    fi
}

# Each rank runs the same tests and would print the same report, one through the other: rank 0
# prints its own, and the others theirs only if they fail. pytest-mpi prints Open MPI's version
# string with its final NUL, which would make a log of this a binary file: hence tr.
mpi_tests() {
    local mpirun=${MPIRUN:-mpirun}
    if ! command -v "${mpirun%% *}" >/dev/null; then
        echo "skipped: no ${mpirun%% *} here; to enable it: pip install 'hpcdask[mpi]'"
        return
    fi
    # shellcheck disable=SC2016,SC2086  # the ranks expand the script; MPIRUN has options in it
    timeout -k 10 300 $mpirun -np 3 bash -c '
        set -o pipefail
        if [[ ${OMPI_COMM_WORLD_RANK:-0} == 0 ]]; then exec "$@"; fi
        report=$("$@" 2>&1 | tr -d "\0") && exit
        code=$?
        printf "rank %s:\n%s\n" "$OMPI_COMM_WORLD_RANK" "$report"
        exit "$code"
    ' rank python -m pytest --with-mpi --only-mpi --color=no -p no:cacheprovider tests/mpi \
        </dev/null | tr -d '\0'
}

# What is started in the background by a script ignores SIGINT, unless it says otherwise.
interruptible_pytest='
import signal, sys, pytest
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(pytest.main(sys.argv[1:]))'

declare -A beside=() outputs=() # of what runs in the background, by its name
trap 'kill -INT "${beside[@]}" 2>/dev/null; wait; rm -f "${outputs[@]}"' EXIT

start_beside() { # start_beside NAME PYTEST-ARGUMENTS...
    local name=$1
    shift
    outputs[$name]=$(mktemp)
    python -c "$interruptible_pytest" "$@" >"${outputs[$name]}" 2>&1 &
    beside[$name]=$!
}

# Its output is shown when it has ended.
finish_beside() { # finish_beside NAME
    local code
    wait "${beside[$1]}"
    code=$?
    unset "beside[$1]"
    cat "${outputs[$1]}"
    return "$code"
}

computing=(tests/core tests/simulation tests/wire)

except() { # except PATH...: the options of pytest that leave these out
    printf -- '--ignore\n%s\n' "$@"
}

stage "system packages" tests/system-packages.sh
start_beside chaos-and-clusters tests/chaos tests/cluster
start_beside batch tests/batch tests/jobqueue
start_beside launchers tests/launchers
start_beside states-and-pages "${computing[@]}" tests/doctor tests/docs
stage "ruff check" ruff check .
stage "ruff format" ruff format --check .
stage "mypy" mypy
stage "docs" sphinx-build -W --keep-going -q docs build/docs
stage "pytest under mpirun, 3 ranks" mpi_tests
mapfile -t others < <(except tests/mpi tests/chaos tests/cluster tests/batch tests/jobqueue \
    tests/launchers "${computing[@]}" tests/doctor tests/docs)
stage "pytest: all else" python -m pytest "${others[@]}"
stage "pytest: states, simulated clusters, bytes; doctor, pages" finish_beside states-and-pages
stage "pytest: chaos, clusters" finish_beside chaos-and-clusters
stage "pytest: launchers" finish_beside launchers
stage "pytest: batch systems" finish_beside batch

if ((${#failed[@]})); then
    printf 'FAILED:' >&2
    printf ' [%s]' "${failed[@]}" >&2
    printf '\n' >&2
fi
exit "$first_code"
