#!/bin/bash
# Trains on the GPUs of a Slurm cluster with one process per GPU, and requeues the job when its time is up:
#
#   sbatch --nodes=4 scripts/slurm.sh effv2 train --config=configs/imagenet.py:s --workdir=/shared/imagenet-s
#
# Run it in the root of the project, on a file system that all nodes share, with .venv from `make install` and the extra
# `cuda12`. Options of sbatch before the script's name override those below. JAX finds the other processes by Slurm's
# variables.
#
#SBATCH --job-name=effv2
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log
#
# --signal: this script gets SIGTERM 300 s before the time is up, enough for a step, an evaluation and a checkpoint.
# No --gpus-per-task or --gpu-bind: each process must see all GPUs of its node, and JAX takes the one of its local rank.
set -euo pipefail
readonly INVALID=2 PREEMPTED=75

if [[ "${1:-} ${2:-}" != *"effv2 train" ]]; then
    echo "slurm: error: the command is missing: sbatch scripts/slurm.sh effv2 train --config=... --workdir=..." >&2
    exit $INVALID
elif [[ -z ${SLURM_JOB_ID:-} ]]; then
    echo "slurm: error: submit this script with sbatch" >&2
    exit $INVALID
fi

# The processes save and exit. A SIGTERM to srun would end them after 30 s.
trap 'scancel --signal=TERM "$SLURM_JOB_ID"' TERM
# The supervisors restart a failed process, and the others once JAX notices the loss.
# Since Slurm 22.05 srun does not inherit --cpus-per-task from sbatch: without it each process would have one core.
srun --kill-on-bad-exit=0 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    .venv/bin/python scripts/supervise.py "$@" --distributed &
step=$!
wait "$step" || true
while kill -0 "$step" 2>/dev/null; do wait "$step" || true; done # a signal ends only the wait
code=0
wait "$step" || code=$?

# A cancelled job is no longer RUNNING, and stays cancelled.
if ((code == PREEMPTED)) && [[ $(squeue --noheader --job="$SLURM_JOB_ID" --format=%T) == RUNNING ]]; then
    echo "slurm: the training has saved; job $SLURM_JOB_ID is requeued" >&2
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
