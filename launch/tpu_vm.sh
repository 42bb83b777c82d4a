#!/bin/bash
# Trains on all workers of a TPU slice (Google Cloud TPU VMs).
#
#   launch/tpu_vm.sh NAME ZONE --config configs/re10k_256.py --workdir gs-mount/runs/re10k \
#       --config.data.path=gs-mount/re10k
#
# NAME is a slice that exists; this folder must be on every worker at the same place (for instance
# `git clone` with --worker=all), with `pip install -e '.[tpu]'` done in .venv, and --workdir on
# storage that all workers share (a mounted bucket or NFS). A preempted slice is started again with
# the same line: training goes on from its newest checkpoint.
set -euo pipefail
name=$1 zone=$2
shift 2
folder=$(basename "$PWD")
command="cd $(printf %q "$folder") && JAX_PLATFORMS=tpu exec .venv/bin/python train.py"
command+=" --config.processes=all $(printf '%q ' "$@")"
exec gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "$command"
