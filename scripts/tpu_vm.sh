#!/usr/bin/env bash
# Rents a Cloud TPU slice, trains on all of its hosts, and deletes it; see docs/tpu.md.
#
#   tpu_vm.sh create NAME --zone=ZONE --accelerator_type=TYPE [--spot] [--valid_until=6h] [--runtime_version=VERSION]
#                         [-- GCLOUD_OPTION...]
#   tpu_vm.sh setup NAME --zone=ZONE                       installs the code of HEAD and its locked requirements
#   tpu_vm.sh train NAME --zone=ZONE -- effv2 train ...    sets up, starts a process on each host, watches until the end
#   tpu_vm.sh logs NAME --zone=ZONE [--worker=0]
#   tpu_vm.sh status|stop|delete NAME --zone=ZONE
#
# All verbs take --project=PROJECT (default: gcloud's), --yes (answers every question), --dry_run (prints the gcloud
# commands without running them) and --poll=SECONDS (30) between two checks of the slice. Each command may be repeated.
# The description of a slice keeps the options of its request, so that `train` can request it again after a preemption.
#
# Exit codes: that of the training (docs/reliability.md); 2, invalid input; 69, Google Cloud does not provide the slice
# or does not answer; 75, the training was stopped; 130, Ctrl-C or SIGTERM (use SIGTERM in the background, where bash
# may ignore SIGINT).
set -euo pipefail
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
    echo "tpu_vm: error: needs bash 4.4 or newer, not $BASH_VERSION" >&2
    exit 2
fi
readonly INVALID=2 UNAVAILABLE=69 STOPPED=75 INTERRUPTED=130
readonly MAX_TRIES=5 # failures in a row, of gcloud or to reach all hosts
readonly MADE_BY="scripts/tpu_vm.sh"
root=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/..
scratch=$(mktemp -d)
follower= # the process group that shows the log
trap 'end_follower; rm -rf "$scratch"' EXIT

log() { echo "tpu_vm: $*" >&2; }

fail() { # CODE SENTENCE
    log "error: $2"
    exit "$1"
}

# shellcheck source=scripts/tpu_slice.sh
source "$root/scripts/tpu_slice.sh"

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
    if confirm "$name costs money as long as it exists. Delete it?"; then
        remove
    else
        log "$name still exists, and costs money until \`$MADE_BY delete $name --zone=$zone\`"
    fi
}

interrupted() {
    trap '' INT TERM
    end_follower
    yes= # --yes is for slices that end by themselves
    log "interrupted; the slice and its training continue"
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
    [[ -n $accelerator ]] || fail $INVALID "create needs --accelerator_type=TYPE, such as v5litepod-16"
    [[ $accelerator =~ ^(v2|v3|v4|v5litepod|v5p|v6e)-[1-9][0-9]*$ ]] ||
        fail $INVALID "--accelerator_type is '$accelerator'; not v2-N, v3-N, v4-N, v5litepod-N (v5e), v5p-N or v6e-N"
    [[ $valid_until =~ ^([0-9]+[smhd])*$ ]] ||
        fail $INVALID "--valid_until is '$valid_until'; it must be a duration such as 6h"
    options=(--accelerator-type="$accelerator")
    options+=(--runtime-version="${runtime:-${runtimes[${accelerator%-*}]:-tpu-ubuntu2204-base}}")
    [[ -z $spot ]] || options+=(--spot)
    [[ -z $valid_until ]] || options+=(--valid-until-duration="$valid_until")
    options+=("$@")
    (($(wc -w <<<"${options[*]}") == ${#options[@]})) ||
        fail $INVALID "options for gcloud must not contain spaces"
    inspect
    if [[ $phase == gone ]]; then
        confirm "$name is $state. Delete it and request a new one?" || exit $UNAVAILABLE
        remove
    fi
    if [[ $phase == @(ready|waiting) ]]; then
        log "$name already exists"
    else
        request "${options[@]}"
    fi
    wait_until_ready
    if [[ $phase == gone ]]; then
        log "error: $name is $state and was never ready; repeat the command to request it again"
        offer_delete
        exit $UNAVAILABLE
    fi
}

pack() {
    [[ -n $dry_run ]] || git -C "$root" archive --format=tar.gz --output="$scratch/effv2_jax.tar.gz" HEAD ||
        fail $INVALID "$root is not a git repository; the code is packed from its HEAD"
    [[ -n $dry_run || -z $(git -C "$root" status --porcelain) ]] || log "uncommitted changes are not copied"
}

# Installs the code and its requirements on every host that is not training.
install_code() {
    local unpack="mkdir -p effv2_run && if flock --shared --nonblock effv2_run/lock true; then"
    unpack+=" rm -rf effv2_jax && mkdir effv2_jax && tar -xzf effv2_jax.tar.gz -C effv2_jax &&"
    unpack+=" bash effv2_jax/scripts/tpu_host.sh setup; fi"
    tpus tpu-vm scp "$scratch/effv2_jax.tar.gz" "$name:effv2_jax.tar.gz" --worker=all &&
        tpus tpu-vm ssh "$name" --worker=all --command="$unpack"
}

require_slice() {
    inspect
    [[ $phase != absent ]] || fail $INVALID "there is no $name in $zone; \`$MADE_BY create\` requests it"
}

require_ready() {
    require_slice
    [[ $phase == ready ]] || fail $UNAVAILABLE "$name is $state, not ready"
}

setup() {
    require_ready
    pack
    quietly install_code || fail $UNAVAILABLE "not all hosts of $name are set up; see above"
}

# Requests a preempted slice again, with the options of the first request.
request_again() {
    local description
    local -a options
    description=$(tpus queued-resources describe "$name" --format="value(tpu.nodeSpec[0].node.description)")
    [[ $description == "$MADE_BY "* ]] ||
        fail $UNAVAILABLE "$name is $state; $MADE_BY did not create it, and cannot request it again"
    read -ra options <<<"${description#"$MADE_BY "}"
    log "$name was preempted ($state)"
    end_follower
    remove
    request "${options[@]}"
}

# Checks the config on this machine, if effv2 is installed, before anything costs money.
check_config() { # COMMAND...
    local word before='' code=0
    local -a words=()
    for word in "$@"; do
        [[ $word != --?(no)config?([.=]*) && $before != --config ]] || words+=("$word")
        before=$word
    done
    ((${#words[@]})) && command -v effv2 >/dev/null || return 0
    (cd "$root" && PYTHONPATH=$root effv2 config "${words[@]}" >/dev/null) || code=$?
    ((code != INVALID)) || exit $INVALID
    ((code == 0)) || log "the config could not be checked on this machine"
}

train() {
    [[ "${1:-} ${2:-}" == "effv2 train" ]] ||
        fail $INVALID "train needs a command: -- effv2 train --config=... --workdir=gs://..."
    [[ " $* " == *" --workdir=gs://"* ]] ||
        fail $INVALID "the command needs --workdir=gs://...; local files are lost with the slice"
    check_config "$@"
    require_slice
    pack
    local started="" failures=0 lines="" words code
    for (( ; ; )); do
        case $phase in
        absent) fail $UNAVAILABLE "$name was deleted by somebody else" ;;
        gone) [[ $state == FAILED ]] || request_again ;;
        esac
        if [[ $phase != ready ]]; then
            wait_until_ready
            started='' failures=0
            continue
        fi
        code=0
        if [[ -z $started ]]; then
            [[ -n $dry_run ]] || log "setting up the hosts"
            if quietly install_code; then quietly host all start "$@" || code=$?; else code=$UNAVAILABLE; fi
            is_following || follower='' lines='' # those of an earlier start
            ((code != INVALID)) || fail $INVALID "$name runs another training; \`$MADE_BY stop\` ends it"
            if [[ -n $dry_run ]]; then
                host 0 follow
                return
            fi
        fi
        if ((code == 0)) && words=$(host_states); then
            started=yes failures=0
            case " $words" in
            *" idle "* | *" bare "*) started= ;; # a host lost its training, for example by a reboot
            *" training "*) follow_log ;;
            *" stopped "*) fail $STOPPED "the training was stopped; \`train\` resumes it" ;;
            *) break ;;
            esac
        elif ((++failures == MAX_TRIES)); then
            log "error: not all hosts of $name can be reached and set up; see above"
            offer_delete
            exit $UNAVAILABLE
        fi
        pause
        inspect patient
    done
    if [[ -z $follower ]] || ! wait "$follower"; then # otherwise the log was shown to its end
        follow_log
        wait "$follower" || true
    fi
    follower=
    code=$(tr " " "\n" <<<"$words" | sed -n "s/^ended://p" | sort -n | tail -n 1)
    log "the training ended with exit code $code"
    offer_delete
    exit "$code"
}

# The distinct states of the hosts.
host_states() {
    quietly host all state | cut -d " " -f 1 | sort -u | tr "\n" " "
}

is_following() { [[ -n $follower ]] && kill -0 -- "-$follower" 2>/dev/null; }

# Shows the log of the first host from the start; after a broken connection, its last lines and what follows.
follow_log() {
    ! is_following || return 0
    set -m # a process group of its own, which can be ended as one and does not receive Ctrl-C
    host 0 follow "$lines" 2>/dev/null &
    set +m
    follower=$!
    lines=10
}

logs() {
    require_ready
    host "$worker" follow
}

status() {
    inspect
    if [[ $phase == absent ]]; then
        log "there is no $name in $zone, and no cost"
        return
    fi
    [[ -n $dry_run ]] || echo "$name: $state"
    if [[ $phase == ready ]]; then
        quietly host all state || fail $UNAVAILABLE "not all hosts of $name can be reached"
    fi
}

stop() {
    require_ready
    quietly host all stop || fail $UNAVAILABLE "not all hosts of $name have stopped; see above"
    offer_delete
}

delete() {
    inspect
    if [[ $phase == absent && -z $dry_run ]]; then
        log "there is no $name in $zone"
    elif confirm "Delete $name ($state) and everything on it?"; then
        remove
    else
        log "$name still exists"
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
phase=absent state='' assumed=READY # the state in a dry run
case $verb in
create) assumed='' ;;
setup | train | status | logs | stop | delete) ;;
"")
    usage >&2
    exit $INVALID
    ;;
*) fail $INVALID "unknown verb '$verb'; $MADE_BY --help lists the verbs" ;;
esac
[[ $name =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
    fail $INVALID "$verb needs the name of a slice: lower-case letters, digits and dashes, not '$name'"
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
    *) fail $INVALID "'$1' is not an argument of $verb; $MADE_BY --help lists them" ;;
    esac
    shift
done
(($# == 0)) || shift
[[ $verb == @(create|train) ]] || (($# == 0)) || fail $INVALID "$verb takes no arguments after --"
[[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] || fail $INVALID "--zone is '$zone'; it must be a zone such as us-central1-a"
[[ $poll =~ ^[0-9]+(\.[0-9]+)?$ ]] || fail $INVALID "--poll is '$poll'; it must be a number of seconds"
[[ $worker =~ ^[0-9]+$ ]] || fail $INVALID "--worker is '$worker'; it must be a number from 0"
[[ -n $dry_run ]] || command -v gcloud >/dev/null || fail $INVALID "gcloud is not installed: cloud.google.com/sdk"
[[ $verb != @(create|train) ]] || trap interrupted INT TERM
"$verb" "$@"
