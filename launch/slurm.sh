#!/bin/bash
# Trains on GPUs of a SLURM cluster, one process a GPU; a run that is preempted goes on by itself.
#
#   sbatch --nodes=8 --gpus-per-node=8 --ntasks-per-node=8 launch/slurm.sh \
#       --config configs/re10k_256.py --workdir /shared/runs/re10k --config.data.path=/shared/re10k
#
# The working folder and --workdir must be on storage that all nodes share.
#SBATCH --job-name=efficient-lvsm
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -euo pipefail

# Two minutes before the time limit, and on preemption, SLURM sends SIGTERM to every task: train.py
# then finishes its step, writes a checkpoint and exits with 143, and the job is queued again.
status=0
srun --kill-on-bad-exit=1 .venv/bin/python train.py "$@" || status=$?
if [ "$status" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
