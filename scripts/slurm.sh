#!/bin/bash
# Trains on the GPUs of a Slurm cluster, a process for each, and goes on in the queue when the time is up:
#
#   sbatch --nodes=4 scripts/slurm.sh effv2 train --config=configs/imagenet.py:s --workdir=/shared/imagenet-s
#
# from the root of the project, which all nodes see, with .venv made by `make install` and the extra `cuda12`. Options of
# sbatch before the script's name replace those here. JAX finds the other processes through Slurm's variables.
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
# --signal: 300 s before the time is up, to this script. A step, an evaluation and a checkpoint must fit into that.
# No --gpus-per-task or --gpu-bind: each process has to see all GPUs of its node, of which JAX takes the one of its number.
set -euo pipefail
readonly MISTAKE=2 PREEMPTED=75

if [[ "${1:-} ${2:-}" != *"effv2 train" ]]; then
    echo "slurm: error: the command is missing: sbatch scripts/slurm.sh effv2 train --config=... --workdir=..." >&2
    exit $MISTAKE
elif [[ -z ${SLURM_JOB_ID:-} ]]; then
    echo "slurm: error: this is a job for sbatch" >&2
    exit $MISTAKE
fi

# To the processes, which save and leave; srun itself would end them after 30 s.
trap 'scancel --signal=TERM "$SLURM_JOB_ID"' TERM
# A process that failed is started again by its supervisor, and the others by theirs once JAX misses it.
# Since Slurm 22.05 srun does not take --cpus-per-task from sbatch, and each process would have one core.
srun --kill-on-bad-exit=0 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" .venv/bin/python scripts/supervise.py "$@" --distributed &
step=$!
wait "$step" || true
while kill -0 "$step" 2>/dev/null; do wait "$step" || true; done # a signal ends the waiting alone
code=0
wait "$step" || code=$?

# A job that was cancelled is no longer RUNNING, and stays cancelled.
if ((code == PREEMPTED)) && [[ $(squeue --noheader --job="$SLURM_JOB_ID" --format=%T) == RUNNING ]]; then
    echo "slurm: the training has saved; job $SLURM_JOB_ID goes back into the queue" >&2
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
