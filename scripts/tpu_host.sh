#!/usr/bin/env bash
# Manages one host of a TPU slice: its environment, and its one training. tpu_vm.sh copies it there and calls it by ssh.
#
#   tpu_host.sh setup | start COMMAND... | state | follow [LINES] | stop
#
# A training holds ~/effv2_run/lock while it lives, so that there is one at a time. A query takes a shared lock for a
# moment, so that two queries do not mistake each other for a training.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
env=$HOME/effv2_env run=$HOME/effv2_run
readonly env run PREEMPTED=75
mkdir -p "$run"
touch "$run/lock" "$run/train.log"

log() { echo "$(hostname): $*"; }

is_training() { ! flock --shared --nonblock "$run/lock" true; }

# The images have Python 3.10, and JAX needs 3.11, which uv installs.
setup() {
    python3 -m uv --version >/dev/null 2>&1 || PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --user --quiet uv
    [[ -x $env/bin/python ]] || python3 -m uv venv --quiet --python=3.11 "$env"
    python3 -m uv pip install --quiet --python="$env/bin/python" --constraint=constraints.txt --editable='.[tpu]'
    log "installed"
}

start() {
    local command
    command=$(printf '%q ' "$@")
    exec 9>"$run/lock" # the training inherits the descriptor and thus the lock
    if ! flock --nonblock 9 && { is_training || ! flock --timeout=5 9; }; then # 5 s: a query may hold it
        [[ $command == "$(cat "$run/command")" ]] && log "is already training" && return
        log "runs another training, stop that first: $(cat "$run/command")" >&2
        exit 2
    fi
    rm -f "$run/ended" "$run/stopped"
    echo "$command" >"$run/command"
    cp /proc/sys/kernel/random/boot_id "$run/boot"
    stat --format=%s "$run/train.log" >"$run/begin"
    setsid nohup bash scripts/tpu_host.sh run "$@" </dev/null >>"$run/train.log" 2>&1 &
    echo $! >"$run/pid"
    log "training started"
}

# What `start` runs in the background.
run() {
    local code=0
    "$env/bin/python" scripts/supervise.py "$env/bin/$1" "${@:2}" --distributed || code=$?
    echo "$code" >"$run/ended"
}

# Prints one word, the host and the last line of its log. idle: the training was never started, or a reboot or a
# preemption ended it, but not `stop`; it has to be started.
state() {
    local word=idle code
    if is_training; then
        word=training
    elif [[ -e $run/stopped ]]; then
        word=stopped
    elif [[ -e $run/ended && $(cat "$run/boot") == "$(cat /proc/sys/kernel/random/boot_id)" ]]; then
        code=$(cat "$run/ended")
        ((code == PREEMPTED)) || word=ended:$code
    fi
    echo "$word $(hostname) $(tail --lines=1 "$run/train.log")"
}

# Shows the log from the start of this training, or its last LINES, until the training ends.
follow() {
    local from="--bytes=+$(($(cat "$run/begin" 2>/dev/null || echo 0) + 1))"
    [[ -z ${1:-} ]] || from=--lines=$1
    exec tail "$from" --follow --pid="$(cat "$run/pid" 2>/dev/null || echo $$)" "$run/train.log"
}

stop() {
    touch "$run/stopped"
    if is_training; then
        pkill --signal=TERM --parent "$(cat "$run/pid")" || true # the supervisor, which forwards it
        flock --shared --timeout=900 "$run/lock" true || { log "is still saving after 900 s" >&2 && exit 1; }
    fi
    log "stopped"
}

"$@"
