#!/usr/bin/env bash
# Every check and test. `make test` calls this with .venv/bin first in PATH and MPIRUN set.
#
# All stages run, so that one run shows all that is wrong; the exit code is that of the first stage
# in the list below that failed. Most of the time is waiting for other processes, so several stages
# run at a time; what one has printed is shown when it has ended.
set -uo pipefail
# As in the Makefile, for who calls this without it: Open MPI wants to be told twice that root may.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
cd "$(dirname "${BASH_SOURCE[0]}")/.."

at_a_time=$((2 * $(nproc) + 1))

names=() # of all stages, in their order
declare -A pids=() outputs=() codes=()
trap 'end_all; rm -f "${outputs[@]}"' EXIT

stage() { # stage NAME COMMAND...: run it as soon as there is room
    local name=$1
    shift
    while ((${#pids[@]} >= at_a_time)); do
        show_ended
    done
    names+=("$name")
    outputs[$name]=$(mktemp)
    "$@" >"${outputs[$name]}" 2>&1 &
    pids[$name]=$!
}

show_ended() { # Wait a moment, and show what has ended.
    local name
    sleep 0.2
    for name in "${!pids[@]}"; do
        if ! kill -0 "${pids[$name]}" 2>/dev/null; then
            wait "${pids[$name]}"
            codes[$name]=$?
            unset "pids[$name]"
            printf '== %s\n' "$name"
            cat "${outputs[$name]}"
        fi
    done
}

what_failed() { # what_failed NAME: the tracebacks of pytest, or the last lines of anything else
    printf '== what failed in [%s]\n' "$1"
    if grep -qaE '^=+ (FAILURES|ERRORS) =+$' "${outputs[$1]}"; then
        sed -nE '/^=+ (FAILURES|ERRORS) =+$/,$p' "${outputs[$1]}"
    else
        tail -n 50 "${outputs[$1]}"
    fi
}

end_all() {
    local name
    for name in "${!pids[@]}"; do
        kill -INT "${pids[$name]}" 2>/dev/null  # pytest tidies up; the others ignore it, and are short
    done
    wait
}

# What is started in the background by a script ignores SIGINT, unless it says otherwise.
interruptible_pytest='
import signal, sys, pytest
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(pytest.main(sys.argv[1:]))'

suite() { # suite NAME PYTEST-ARGUMENTS...
    local name=$1
    shift
    stage "pytest: $name" exec_pytest "$@"
}

exec_pytest() {
    exec python -c "$interruptible_pytest" "$@"
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

except() { # except PATH...: the options of pytest that leave these out
    printf -- '--ignore\n%s\n' "$@"
}

# A Slurm, a Grid Engine or a site of several hosts takes seconds to start, once in each stage that
# needs one: so tests stand together that need the same.
on_systems=(tests/batch tests/jobqueue tests/docs/test_programs_on_other_systems.py)
of_jobs=(tests/jobqueue/test_clusters*.py)
on_srun=(tests/launchers/test_endings.py tests/launchers/test_runners.py)
under_mpirun=(tests/launchers/test_mpirun.py tests/launchers/test_initialize.py)
computing=(tests/core tests/simulation tests/wire)

printf '== system packages\n'
outputs["system packages"]=$(mktemp)
tests/system-packages.sh 2>&1 | tee "${outputs["system packages"]}"
codes["system packages"]=${PIPESTATUS[0]}
names=("system packages")
# The longest first, or one would run alone in the end.
mapfile -t rest < <(except "${of_jobs[@]}")
suite "clusters of jobs" "${of_jobs[@]}"
suite "batch systems" "${on_systems[@]}" "${rest[@]}"
mapfile -t rest < <(except tests/mpi tests/chaos tests/cluster tests/launchers tests/cli tests/docs \
    tests/doctor "${on_systems[@]}" "${computing[@]}")
suite "all else" "${rest[@]}"
suite "chaos" tests/chaos
suite "launchers under srun too" "${on_srun[@]}"
suite "launchers under mpirun" "${under_mpirun[@]}"
stage "ruff check" ruff check .
stage "ruff format" ruff format --check .
stage "mypy" mypy
stage "docs" sphinx-build -W --keep-going -q docs build/docs
suite "pages, doctor" tests/docs tests/doctor --ignore tests/docs/test_programs_on_other_systems.py
mapfile -t rest < <(except "${on_srun[@]}" "${under_mpirun[@]}")
suite "launchers otherwise" tests/launchers "${rest[@]}"
suite "clusters" tests/cluster
suite "states, simulated clusters, bytes" "${computing[@]}"
stage "pytest under mpirun, 3 ranks" mpi_tests
suite "commands" tests/cli
while ((${#pids[@]})); do
    show_ended
done

# What went wrong once more, at the end: a log may be long, and is often cut at its beginning.
failed=()
for name in "${names[@]}"; do
    ((codes[$name] == 0)) || failed+=("$name")
done
for name in "${failed[@]}"; do
    what_failed "$name"
done >&2
for name in "${failed[@]}"; do
    printf 'FAILED: [%s]\n' "$name"
    grep -aE '^(FAILED|ERROR) ' "${outputs[$name]}" | cut -c 1-300
done >&2
((${#failed[@]} == 0)) || exit "${codes[${failed[0]}]}"
