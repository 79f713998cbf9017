#!/bin/bash
# A batch system for tests whose jobs are processes of this machine: see fake_queue.py.
#
#     queue_commands.sh FOLDER submit SCRIPT | list | cancel ID...
#
# In FOLDER each job has ID.job; ID.held while it waits; ID.pid of its process group; ID.log;
# ID.cancelled if it was; and ID.end with its exit code when it is over. FOLDER/hold has jobs wait, with its content as the
# reason; FOLDER/refuse has them refused; FOLDER/broken has list fail; each command leaves a line in
# FOLDER/commands.
cd "$1" || exit 1
action=$2
shift 2
echo "$action $*" >>commands

start() { # start ID SCRIPT
    FAKE_ID=$1 setsid bash -c '
        trap : TERM
        echo $$ >"$1.pid"
        bash "$2" >"$1.log" 2>&1 &
        while wait $!; code=$?; ((code > 128)) && kill -0 $! 2>/dev/null; do :; done
        trap "" TERM # one that comes now, since the job has ended by itself, must not end mv
        echo $code >"$1.end.new"
        mv "$1.end.new" "$1.end"' job "$1" "$2" </dev/null >/dev/null 2>&1 &
}

case $action in
submit)
    if [[ -e refuse ]]; then
        cat refuse >&2
        exit 1
    fi
    id=$(($(cat last 2>/dev/null || echo 0) + 1))
    echo "$id" >last
    count=$(sed -n 's/^#FAKE --count=//p' "$1")
    for ((n = 1; n <= count; n++)); do
        touch "${id}_$n.job"
        if [[ -e hold ]]; then cp hold "${id}_$n.held"; else start "${id}_$n" "$1"; fi
    done
    [[ -e mute ]] || echo "$id"
    ;;
list)
    if [[ -e broken ]]; then
        echo "the queue is being restarted" >&2
        exit 1
    fi
    for job in *.job; do
        id=${job%.job}
        if [[ -e $id.end ]]; then
            code=$(cat "$id.end")
            if [[ -e $id.cancelled ]]; then code=143; fi
            echo "$id ENDED $code"
        elif [[ -e $id.held ]]; then
            echo "$id PENDING $(cat "$id.held")"
        else
            echo "$id RUNNING"
        fi
    done
    echo done
    ;;
cancel)
    for id in "$@"; do
        touch "$id.cancelled"
        if [[ -e $id.held ]]; then
            echo 143 >"$id.end"
        else
            kill -TERM -- "-$(cat "$id.pid")"
        fi
    done
    ;;
esac
