#!/usr/bin/env bash
# Rents a Cloud TPU slice, trains on all of its hosts, and gives it back; docs/tpu.md shows how.
#
#   tpu_vm.sh create NAME --zone=ZONE --accelerator_type=TYPE [--spot] [--valid_until=6h] [--runtime_version=VERSION]
#                         [-- GCLOUD_OPTION...]
#   tpu_vm.sh setup NAME --zone=ZONE                       the code of HEAD and its locked requirements, on every host
#   tpu_vm.sh train NAME --zone=ZONE -- effv2 train ...    sets up, starts a process on each host, watches until the end
#   tpu_vm.sh logs NAME --zone=ZONE [--worker=0]
#   tpu_vm.sh status|stop|delete NAME --zone=ZONE
#
# Everywhere: --project=PROJECT (by default gcloud's), --yes (to every question), --dry_run (prints the gcloud commands
# and runs none), --poll=SECONDS (30) between two looks at the slice. Each command may be given twice. What a slice was
# asked for with is kept in its description, out of which `train` asks for it again where it was preempted.
#
# Exit codes: that of the training (docs/reliability.md); 2, a mistake; 69, Google Cloud has no such slice to give, or does
# not answer; 75, the training was stopped; 130, Ctrl-C or SIGTERM (in the background send SIGTERM: SIGINT may be ignored).
set -euo pipefail
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
    echo "tpu_vm: error: needs bash 4.4 or newer, not $BASH_VERSION" >&2
    exit 2
fi
readonly MISTAKE=2 UNAVAILABLE=69 STOPPED=75 INTERRUPTED=130
readonly TRIES=5 # looks in a row, or tries to reach all hosts, before it gives up
readonly MADE_BY="scripts/tpu_vm.sh"
root=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/..
scratch=$(mktemp -d)
follower= # the process group that shows the log
trap 'end_follower; rm -rf "$scratch"' EXIT

say() { echo "tpu_vm: $*" >&2; }

fail() { # CODE SENTENCE
    say "error: $2"
    exit "$1"
}

# `wait` lets a signal through, `sleep` would not.
pause() {
    sleep "$poll" >/dev/null 2>&1 &
    wait $! || true
}

# --- gcloud

# gcloud compute tpus WORDS. Our standard input is not for it.
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

# tpu_host.sh WORDS on a worker, or on all.
host() { # WORKER WORDS
    local command
    command="bash effv2_jax/scripts/tpu_host.sh$(printf ' %q' "${@:2}")"
    [[ $2 != state ]] || command="if [ -e effv2_jax ]; then $command; else echo bare; fi"
    tpus tpu-vm ssh "$name" --worker="$1" --ssh-flag="-o ServerAliveInterval=30" --command="$command"
}

# gcloud tells of every connection: only where one fails is that of use.
quietly() { # COMMAND
    local code=0
    "$@" 2>"$scratch/errors" || code=$?
    ((code == 0)) || cat "$scratch/errors" >&2
    return "$code"
}

# Sets `state`, Google's word, and `phase`: absent, waiting, ready, or gone, which is preempted or failed to come.
look() { # [patient]
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
            ! grep --quiet NOT_FOUND "$scratch/errors" || state=PREEMPTED # and its machines are no longer listed
            [[ -z $state ]] || break
        elif grep --quiet NOT_FOUND "$scratch/errors"; then
            break
        fi
        cat "$scratch/errors" >&2
        if [[ ${1:-} != patient ]] || ((try == TRIES)); then
            fail $UNAVAILABLE "gcloud cannot tell what became of $name"
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

request() { # the options of gcloud
    [[ -n $dry_run ]] || say "asking for $name: $*"
    phase=waiting assumed=READY
    if ! tpus queued-resources create "$name" --node-id="$name" --description="$MADE_BY $*" "$@"; then
        look patient
        [[ $phase != absent ]] || fail $UNAVAILABLE "Google Cloud did not take the request; nothing was created"
    fi
}

# While the slice is waited for.
await() {
    local told=
    look patient
    while [[ $phase == waiting ]]; do
        [[ $state == "$told" ]] || say "$name is $state"
        told=$state
        pause
        look patient
    done
    [[ $phase != absent ]] || fail $UNAVAILABLE "$name was deleted by somebody else"
    if [[ $state == FAILED ]]; then
        say "error: $name FAILED: $(tpus queued-resources describe "$name" --format="value(state.failedData.error.message)")"
        offer_delete
        exit $UNAVAILABLE
    fi
    [[ $phase != ready || -n $dry_run ]] || say "$name is ready, and costs money until it is deleted"
}

remove() {
    tpus queued-resources delete "$name" --force || fail $UNAVAILABLE "$name could not be deleted, and may cost money"
    [[ -n $dry_run ]] || say "$name is deleted"
}

# --- questions

confirm() {
    [[ -z $yes$dry_run ]] || return 0
    local answer=
    printf 'tpu_vm: %s [y/N] ' "$1" >&2
    read -r answer || echo >&2
    [[ $answer == [yY]* ]]
}

offer_delete() {
    [[ -z $dry_run ]] || return 0
    if confirm "$name costs money for as long as it is there. Delete it?"; then
        remove
    else
        say "$name stays, and costs money until \`$MADE_BY delete $name --zone=$zone\`"
    fi
}

interrupted() {
    trap '' INT TERM
    end_follower
    yes= # it answers for what comes to an end by itself
    say "interrupted; what was started goes on"
    [[ $phase == absent ]] || offer_delete
    exit $INTERRUPTED
}

end_follower() {
    [[ -z $follower ]] || kill -TERM -- "-$follower" 2>/dev/null || true
    follower=
}

# --- verbs

create() {
    local -A runtimes=([v5litepod]=v2-alpha-tpuv5-lite [v5p]=v2-alpha-tpuv5 [v6e]=v2-alpha-tpuv6e)
    local -a options
    [[ -n $accelerator ]] || fail $MISTAKE "create needs --accelerator_type=TYPE, such as v5litepod-16"
    [[ $accelerator =~ ^(v2|v3|v4|v5litepod|v5p|v6e)-[1-9][0-9]*$ ]] ||
        fail $MISTAKE "--accelerator_type is '$accelerator'; it must be v2-N, v3-N, v4-N, v5litepod-N (v5e), v5p-N or v6e-N"
    [[ $valid_until =~ ^([0-9]+[smhd])*$ ]] || fail $MISTAKE "--valid_until is '$valid_until'; it must be such as 6h"
    options=(--accelerator-type="$accelerator")
    options+=(--runtime-version="${runtime:-${runtimes[${accelerator%-*}]:-tpu-ubuntu2204-base}}")
    [[ -z $spot ]] || options+=(--spot)
    [[ -z $valid_until ]] || options+=(--valid-until-duration="$valid_until")
    options+=("$@")
    (($(wc -w <<<"${options[*]}") == ${#options[@]})) || fail $MISTAKE "options for gcloud must not contain spaces"
    look
    if [[ $phase == gone ]]; then
        confirm "$name is $state. Delete it, and ask anew?" || exit $UNAVAILABLE
        remove
    fi
    if [[ $phase == @(ready|waiting) ]]; then
        say "$name is there already"
    else
        request "${options[@]}"
    fi
    await
    if [[ $phase == gone ]]; then
        say "error: $name is $state, and was not ready; the same command asks anew"
        offer_delete
        exit $UNAVAILABLE
    fi
}

pack() {
    [[ -n $dry_run ]] || git -C "$root" archive --format=tar.gz --output="$scratch/effv2_jax.tar.gz" HEAD ||
        fail $MISTAKE "$root is no git repository, out of which the code is packed"
    [[ -n $dry_run || -z $(git -C "$root" status --porcelain) ]] || say "what is not committed stays here"
}

# The code and what it requires, on every host that trains nothing.
put() {
    local unpack="mkdir -p effv2_run && if flock --shared --nonblock effv2_run/lock true; then rm -rf effv2_jax && mkdir effv2_jax"
    unpack+=" && tar -xzf effv2_jax.tar.gz -C effv2_jax && bash effv2_jax/scripts/tpu_host.sh setup; fi"
    tpus tpu-vm scp "$scratch/effv2_jax.tar.gz" "$name:effv2_jax.tar.gz" --worker=all &&
        tpus tpu-vm ssh "$name" --worker=all --command="$unpack"
}

need_slice() {
    look
    [[ $phase != absent ]] || fail $MISTAKE "there is no $name in $zone; \`$MADE_BY create\` asks for it"
}

need_ready() {
    need_slice
    [[ $phase == ready ]] || fail $UNAVAILABLE "$name is $state, not ready"
}

setup() {
    need_ready
    pack
    quietly put || fail $UNAVAILABLE "not every host of $name is set up; see above"
}

# Asks again for a slice that was preempted, with what it was asked for the first time.
again() {
    local made
    local -a options
    made=$(tpus queued-resources describe "$name" --format="value(tpu.nodeSpec[0].node.description)")
    [[ $made == "$MADE_BY "* ]] || fail $UNAVAILABLE "$name is $state; it was not made by $MADE_BY, which cannot make it again"
    read -ra options <<<"${made#"$MADE_BY "}"
    say "$name was preempted ($state)"
    end_follower
    remove
    request "${options[@]}"
}

# A mistake in the config is found here, where it costs nothing, if effv2 is installed.
check_config() { # the command
    local word before='' code=0
    local -a words=()
    for word in "$@"; do
        [[ $word != --?(no)config?([.=]*) && $before != --config ]] || words+=("$word")
        before=$word
    done
    ((${#words[@]})) && command -v effv2 >/dev/null || return 0
    (cd "$root" && PYTHONPATH=$root effv2 config "${words[@]}" >/dev/null) || code=$?
    ((code != MISTAKE)) || exit $MISTAKE
    ((code == 0)) || say "the config could not be checked here"
}

train() {
    [[ "${1:-} ${2:-}" == "effv2 train" ]] || fail $MISTAKE "train needs a command: -- effv2 train --config=... --workdir=gs://..."
    [[ " $* " == *" --workdir=gs://"* ]] || fail $MISTAKE "the command needs --workdir=gs://...; other places vanish with the slice"
    check_config "$@"
    need_slice
    pack
    local started="" failures=0 lines="" words code
    for (( ; ; )); do
        case $phase in
        absent) fail $UNAVAILABLE "$name was deleted by somebody else" ;;
        gone) [[ $state == FAILED ]] || again ;;
        esac
        if [[ $phase != ready ]]; then
            await
            started='' failures=0
            continue
        fi
        code=0
        if [[ -z $started ]]; then
            [[ -n $dry_run ]] || say "setting up the hosts"
            if quietly put; then quietly host all start "$@" || code=$?; else code=$UNAVAILABLE; fi
            follows || follower='' lines='' # of an earlier start
            ((code != MISTAKE)) || fail $MISTAKE "$name trains something else; \`$MADE_BY stop\` ends that"
            if [[ -n $dry_run ]]; then
                host 0 follow
                return
            fi
        fi
        if ((code == 0)) && words=$(states); then
            started=yes failures=0
            case " $words" in
            *" idle "* | *" bare "*) started= ;; # a host came back without its training
            *" training "*) follow_first ;;
            *" stopped "*) fail $STOPPED "the training was stopped; \`train\` goes on with it" ;;
            *) break ;;
            esac
        elif ((++failures == TRIES)); then
            say "error: not every host of $name can be reached, or set up; see above"
            offer_delete
            exit $UNAVAILABLE
        fi
        pause
        look patient
    done
    if [[ -z $follower ]] || ! wait "$follower"; then # else it was shown to its end
        follow_first
        wait "$follower" || true
    fi
    follower=
    code=$(tr " " "\n" <<<"$words" | sed -n "s/^ended://p" | sort -n | tail -n 1)
    say "the training ended with exit code $code"
    offer_delete
    exit "$code"
}

# What the hosts do, each word once.
states() {
    quietly host all state | cut -d " " -f 1 | sort -u | tr "\n" " "
}

follows() { [[ -n $follower ]] && kill -0 -- "-$follower" 2>/dev/null; }

# Shows the log of the first host: all of it, and where the connection broke, its last lines and what follows.
follow_first() {
    ! follows || return 0
    set -m # a process group, which can be ended as one, and which Ctrl-C does not reach
    host 0 follow "$lines" 2>/dev/null &
    set +m
    follower=$!
    lines=10
}

logs() {
    need_ready
    host "$worker" follow
}

status() {
    look
    if [[ $phase == absent ]]; then
        say "there is no $name in $zone, which costs nothing"
        return
    fi
    [[ -n $dry_run ]] || echo "$name: $state"
    if [[ $phase == ready ]]; then
        quietly host all state || fail $UNAVAILABLE "not every host of $name can be reached"
    fi
}

stop() {
    need_ready
    quietly host all stop || fail $UNAVAILABLE "not every host of $name has stopped; see above"
    offer_delete
}

delete() {
    look
    if [[ $phase == absent && -z $dry_run ]]; then
        say "there is no $name in $zone"
    elif confirm "Delete $name ($state), and all that is on it?"; then
        remove
    else
        say "$name stays"
    fi
}

# --- arguments

usage() {
    sed -n "2,/^set /{/^#/s/^# \?//p}" "${BASH_SOURCE[0]}"
}

verb=${1:-} name=${2:-}
for word in "$@"; do
    [[ $word != -- ]] || break
    if [[ $word == @(help|--help|-h) ]]; then
        usage
        exit 0
    fi
done
project='' zone='' accelerator='' runtime='' valid_until='' spot='' worker=0 yes='' dry_run='' poll=30
phase=absent state='' assumed=READY # nothing is asked where nothing is run
case $verb in
create) assumed='' ;;
setup | train | status | logs | stop | delete) ;;
"")
    usage >&2
    exit $MISTAKE
    ;;
*) fail $MISTAKE "'$verb' is no verb; $MADE_BY --help prints them" ;;
esac
[[ $name =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
    fail $MISTAKE "$verb needs the name of a slice: small letters, digits and dashes, not '$name'"
shift 2
while (($#)) && [[ $1 != -- ]]; do
    value=${1#*=}
    case "$verb $1" in
    *" --zone="*) zone=$value ;;
    *" --project="*) project=$value ;;
    *" --poll="*) poll=$value ;;
    *" --yes") yes=yes ;;
    *" --dry_run") dry_run=yes ;;
    "create --accelerator_type="*) accelerator=$value ;;
    "create --runtime_version="*) runtime=$value ;;
    "create --valid_until="*) valid_until=$value ;;
    "create --spot") spot=yes ;;
    "logs --worker="*) worker=$value ;;
    *) fail $MISTAKE "'$1' is no argument of $verb; $MADE_BY --help prints them" ;;
    esac
    shift
done
(($# == 0)) || shift
[[ $verb == @(create|train) ]] || (($# == 0)) || fail $MISTAKE "$verb takes nothing after --"
[[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] || fail $MISTAKE "--zone is '$zone'; it must be such as us-central1-a"
[[ $poll =~ ^[0-9]+(\.[0-9]+)?$ ]] || fail $MISTAKE "--poll is '$poll'; it must be seconds"
[[ $worker =~ ^[0-9]+$ ]] || fail $MISTAKE "--worker is '$worker'; it must be a number from 0"
[[ -n $dry_run ]] || command -v gcloud >/dev/null || fail $MISTAKE "there is no gcloud here: cloud.google.com/sdk"
[[ $verb != @(create|train) ]] || trap interrupted INT TERM
"$verb" "$@"
