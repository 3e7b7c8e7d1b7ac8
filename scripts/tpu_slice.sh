# Sourced by tpu_vm.sh: requests a slice, inspects it, reaches its hosts and deletes it, by gcloud.
#
# Reads name, zone, project, dry_run, assumed, poll and scratch of tpu_vm.sh; sets state and phase.
# shellcheck shell=bash disable=SC2154

# gcloud compute tpus WORDS, without our standard input.
tpus() {
    local -a words=(gcloud compute tpus "$@" --zone="$zone" --quiet)
    [[ -z $project ]] || words+=(--project="$project")
    if [[ -z $dry_run ]]; then
        "${words[@]}" </dev/null
        return
    fi
    local word
    for word in "${words[@]}"; do
        [[ $word =~ ^[A-Za-z0-9_./:=,-]+$ ]] || word=${word@Q}
        printf '%s ' "$word"
    done
    echo
}

# Runs tpu_host.sh WORDS on one worker or on all.
host() { # WORKER WORDS
    local command
    command="bash effv2_jax/scripts/tpu_host.sh$(printf ' %q' "${@:2}")"
    [[ $2 != state ]] || command="if [ -e effv2_jax ]; then $command; else echo bare; fi"
    tpus tpu-vm ssh "$name" --worker="$1" --ssh-flag="-o ServerAliveInterval=30" --command="$command"
}

# Shows standard error only if the command fails: gcloud reports every connection.
quietly() { # COMMAND
    local code=0
    "$@" 2>"$scratch/errors" || code=$?
    ((code == 0)) || cat "$scratch/errors" >&2
    return "$code"
}

# Sets `state`, Google's word, and `phase`: absent, waiting, ready, or gone (preempted, or the request failed).
inspect() { # [patient]
    local try
    if [[ -n $dry_run ]]; then
        tpus queued-resources describe "$name" --format="value(state.state)"
        state=$assumed
    fi
    for ((try = 1; ${#dry_run} == 0; try++)); do
        state=
        if state=$(tpus queued-resources describe "$name" --format="value(state.state)" 2>"$scratch/errors"); then
            [[ $state == ACTIVE ]] || break
            state=$(tpus tpu-vm describe "$name" --format="value(state)" 2>"$scratch/errors") && break
            ! grep --quiet NOT_FOUND "$scratch/errors" || state=PREEMPTED # its machines are no longer listed
            [[ -z $state ]] || break
        elif grep --quiet NOT_FOUND "$scratch/errors"; then
            break
        fi
        cat "$scratch/errors" >&2
        if [[ ${1:-} != patient ]] || ((try == MAX_TRIES)); then
            fail "$UNAVAILABLE" "gcloud cannot get the state of $name"
        fi
        pause
    done
    case $state in
    "") phase=absent ;;
    READY) phase=ready ;;
    SUSPENDED | FAILED | PREEMPTED | TERMINATED) phase=gone ;;
    *) phase=waiting ;;
    esac
}

request() { # GCLOUD_OPTION...
    [[ -n $dry_run ]] || log "requesting $name: $*"
    phase=waiting assumed=READY
    if ! tpus queued-resources create "$name" --node-id="$name" --description="$MADE_BY $*" "$@"; then
        inspect patient
        [[ $phase != absent ]] || fail "$UNAVAILABLE" "Google Cloud rejected the request; nothing was created"
    fi
}

# Waits while the slice is in phase waiting.
wait_until_ready() {
    local last_state='' error
    inspect patient
    while [[ $phase == waiting ]]; do
        [[ $state == "$last_state" ]] || log "$name is $state"
        last_state=$state
        pause
        inspect patient
    done
    [[ $phase != absent ]] || fail "$UNAVAILABLE" "$name was deleted by somebody else"
    if [[ $state == FAILED ]]; then
        error=$(tpus queued-resources describe "$name" --format="value(state.failedData.error.message)")
        log "error: $name FAILED: $error"
        offer_delete
        exit "$UNAVAILABLE"
    fi
    [[ $phase != ready || -n $dry_run ]] || log "$name is ready, and costs money until it is deleted"
}

remove() {
    tpus queued-resources delete "$name" --force || fail "$UNAVAILABLE" "$name could not be deleted, and may cost money"
    [[ -n $dry_run ]] || log "$name is deleted"
}

# `sleep` in the background: a trap runs during `wait`, but not during `sleep`.
pause() {
    sleep "$poll" >/dev/null 2>&1 &
    wait $! || true
}
