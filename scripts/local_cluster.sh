#!/usr/bin/env bash
# Trains in several processes with simulated devices on this machine, as on a slice or a cluster.
#
#   scripts/local_cluster.sh PROCESSES [--devices_per_process=2] effv2 train --config=... --workdir=...
#
# Each line of the log begins with the number of its process. Ctrl-C or SIGTERM makes all processes save and exit with
# code 75; a second one kills them. If a process fails, the others are ended, and its exit code is that of the script.
# In the background, where bash may ignore SIGINT, send SIGTERM.
set -euo pipefail
readonly INVALID=2 PREEMPTED=75
readonly GRACE=30 # seconds until the others are killed after one has failed

log() { echo "local_cluster: $*" >&2; }
fail() {
    log "error: $1"
    exit $INVALID
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 501)) || fail "needs bash 5.1 or newer, not $BASH_VERSION"
num_processes=${1:-} devices=2
[[ $num_processes =~ ^[1-9][0-9]*$ ]] || fail "the first argument must be the number of processes, not '$num_processes'"
shift
if [[ ${1:-} == --devices_per_process=* ]]; then
    devices=${1#*=}
    [[ $devices =~ ^[1-9][0-9]*$ ]] || fail "--devices_per_process must be a number of at least 1, not '$devices'"
    shift
fi
[[ "${1:-} ${2:-}" == *"effv2 train" ]] || fail "the command is missing: effv2 train --config=... --workdir=..."
command -v "$1" >/dev/null || fail "there is no command '$1'"

export JAX_PLATFORMS=cpu XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
declare -A running=() # number of the process by process id
printers=() signals=0 timer='' result=0

signal_all() { # SIGNAL
    ((${#running[@]} == 0)) || kill -"$1" "${!running[@]}" 2>/dev/null || true
}

# Background processes do not receive the terminal's Ctrl-C.
# shellcheck disable=SC2329  # the trap calls it
forward_signal() {
    signals=$((signals + 1))
    if ((signals == 1)); then signal_all TERM; else signal_all KILL; fi
}
trap 'forward_signal' INT TERM

for ((process = 0; process < num_processes; process++)); do
    exec {log}> >(trap '' INT TERM; exec sed --unbuffered "s/^/$process: /")
    printers+=($!)
    "$@" --coordinator="localhost:$port" --num_processes="$num_processes" --process_id="$process" \
        >&"$log" 2>&1 {log}>&- &
    running[$!]=$process
    exec {log}>&-
done

while ((${#running[@]})); do
    wait -n "${!running[@]}" ${timer:+"$timer"} || true # until a process ends or a signal arrives
    if [[ -n $timer ]] && ! kill -0 "$timer" 2>/dev/null; then
        timer=''
        signal_all KILL
    fi
    for pid in "${!running[@]}"; do
        ! kill -0 "$pid" 2>/dev/null || continue
        code=0
        wait "$pid" || code=$?
        process=${running[$pid]}
        unset "running[$pid]"
        ((code && (result == 0 || result == PREEMPTED))) || continue
        result=$code
        # After a signal all processes exit together.
        if ((code != PREEMPTED && signals == 0 && ${#running[@]})); then
            log "process $process failed with exit code $code; ending the others"
            signal_all TERM
            sleep $GRACE >/dev/null &
            timer=$!
        fi
    done
done
[[ -z $timer ]] || kill "$timer"
wait "${printers[@]}" || true
exit "$result"
