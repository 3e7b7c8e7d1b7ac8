#!/usr/bin/env bash
# A host of a TPU slice: its environment, and the one training that it runs. tpu_vm.sh copies it there and calls it by ssh.
#
#   tpu_host.sh setup | start COMMAND... | state | follow [LINES] | stop
#
# `start` holds ~/effv2_run/lock for as long as the training lives, so that there is one at a time. Who only wants to know
# shares the lock for a moment, so that two who ask don't take each other for a training.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
env=$HOME/effv2_env run=$HOME/effv2_run
readonly env run PREEMPTED=75
mkdir -p "$run"
touch "$run/lock" "$run/train.log"

say() { echo "$(hostname): $*"; }

trains() { ! flock --shared --nonblock "$run/lock" true; }

# The images have Python 3.10, and JAX needs 3.11: uv brings it where it is not there.
setup() {
    python3 -m uv --version >/dev/null 2>&1 || PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --user --quiet uv
    [[ -x $env/bin/python ]] || python3 -m uv venv --quiet --python=3.11 "$env"
    python3 -m uv pip install --quiet --python="$env/bin/python" --constraint=constraints.txt --editable='.[tpu]'
    say "installed"
}

start() {
    local command
    command=$(printf '%q ' "$@")
    exec 9>"$run/lock" # the training inherits it, and the lock with it
    if ! flock --nonblock 9 && { trains || ! flock --timeout=5 9; }; then # 5 s: for those who only ask
        [[ $command == "$(cat "$run/command")" ]] && say "trains already" && return
        say "trains something else, stop that first: $(cat "$run/command")" >&2
        exit 2
    fi
    rm -f "$run/ended" "$run/stopped"
    echo "$command" >"$run/command"
    cp /proc/sys/kernel/random/boot_id "$run/boot"
    stat --format=%s "$run/train.log" >"$run/begin"
    setsid nohup bash scripts/tpu_host.sh run "$@" </dev/null >>"$run/train.log" 2>&1 &
    echo $! >"$run/pid"
    say "training started"
}

# What `start` leaves behind in the background.
run() {
    local code=0
    "$env/bin/python" scripts/supervise.py "$env/bin/$1" "${@:2}" --distributed || code=$?
    echo "$code" >"$run/ended"
}

# One word, the host and the last line of its log. idle: never started, rebooted since, or asked to leave by somebody
# other than `stop`, as by the end of a spot machine; it wants to be started.
state() {
    local word=idle code
    if trains; then
        word=training
    elif [[ -e $run/stopped ]]; then
        word=stopped
    elif [[ -e $run/ended && $(cat "$run/boot") == "$(cat /proc/sys/kernel/random/boot_id)" ]]; then
        code=$(cat "$run/ended")
        ((code == PREEMPTED)) || word=ended:$code
    fi
    echo "$word $(hostname) $(tail --lines=1 "$run/train.log")"
}

# From where this training began, or the last LINES; until it ends.
follow() {
    local from="--bytes=+$(($(cat "$run/begin" 2>/dev/null || echo 0) + 1))"
    [[ -z ${1:-} ]] || from=--lines=$1
    exec tail "$from" --follow --pid="$(cat "$run/pid" 2>/dev/null || echo $$)" "$run/train.log"
}

stop() {
    touch "$run/stopped"
    if trains; then
        pkill --signal=TERM --parent "$(cat "$run/pid")" || true # the supervisor, which passes it on
        flock --shared --timeout=900 "$run/lock" true || { say "still saves after 900 s" >&2 && exit 1; }
    fi
    say "stopped"
}

"$@"
