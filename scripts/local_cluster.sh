#!/usr/bin/env bash
# Trains in several processes on this machine, as on a slice or a cluster, with simulated devices.
#
#   scripts/local_cluster.sh PROCESSES [--devices_per_process=2] effv2 train --config=... --workdir=...
#
# Each line of the log begins with the process that it is from. Ctrl-C and SIGTERM ask all processes to save and leave
# (exit code 75), a second one kills them. Where one fails the others are ended, and its exit code is that of the whole.
# In the background, where there is no Ctrl-C (and bash may have SIGINT ignored), send SIGTERM.
set -euo pipefail
readonly MISTAKE=2 PREEMPTED=75
readonly GRACE=30 # seconds that the others have to leave where one has failed

say() { echo "local_cluster: $*" >&2; }
fail() {
    say "error: $1"
    exit $MISTAKE
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 501)) || fail "needs bash 5.1 or newer, not $BASH_VERSION"
processes=${1:-} devices=2
[[ $processes =~ ^[1-9][0-9]*$ ]] || fail "the first argument must be the number of processes, not '$processes'"
shift
if [[ ${1:-} == --devices_per_process=* ]]; then
    devices=${1#*=}
    [[ $devices =~ ^[1-9][0-9]*$ ]] || fail "--devices_per_process must be a number from 1, not '$devices'"
    shift
fi
[[ "${1:-} ${2:-}" == *"effv2 train" ]] || fail "then comes the command: effv2 train --config=... --workdir=..."
command -v "$1" >/dev/null || fail "there is no command '$1'"

export JAX_PLATFORMS=cpu XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
declare -A running=() # number of the process by process id
printers=() asked=0 timer='' result=0

signal_all() { # SIGNAL
    ((${#running[@]} == 0)) || kill -"$1" "${!running[@]}" 2>/dev/null || true
}

# A process in the background does not hear a terminal's Ctrl-C itself.
# shellcheck disable=SC2329  # the trap calls it
leave() {
    asked=$((asked + 1))
    if ((asked == 1)); then signal_all TERM; else signal_all KILL; fi
}
trap 'leave' INT TERM

for ((process = 0; process < processes; process++)); do
    exec {log}> >(trap '' INT TERM; exec sed --unbuffered "s/^/$process: /")
    printers+=($!)
    "$@" --coordinator="localhost:$port" --num_processes="$processes" --process_id="$process" >&"$log" 2>&1 {log}>&- &
    running[$!]=$process
    exec {log}>&-
done

while ((${#running[@]})); do
    wait -n "${!running[@]}" ${timer:+"$timer"} || true # for an end, or for a signal
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
        # Those that are asked to leave do it together.
        if ((code != PREEMPTED && asked == 0 && ${#running[@]})); then
            say "process $process ended with exit code $code, and the others are ended"
            signal_all TERM
            sleep $GRACE >/dev/null &
            timer=$!
        fi
    done
done
[[ -z $timer ]] || kill "$timer"
wait "${printers[@]}" || true
exit "$result"
