#!/bin/bash
# Trains on several nodes without a scheduler. To be started on each node, with the same run folder on a file system that
# all of them see:
#
#   NODES=2 RANK0=node0 bash docs/recipes/torchrun.sh
#
# A run that was stopped goes on when the same line is started again.
set -euo pipefail

NODES=${NODES:-1}                # how many nodes there are
GPUS=${GPUS:-8}                  # on each of them
RANK0=${RANK0:-localhost}        # the node that the others meet at; it must be able to listen on PORT
PORT=${PORT:-29500}

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

torchrun --nnodes "$NODES" --nproc_per_node "$GPUS" \
  --rdzv_backend c10d --rdzv_endpoint "$RANK0:$PORT" --rdzv_id visionattn \
  train.py fit --config configs/imagenet/nat_tiny.yaml --data.root data/imagenet \
  --trainer.accelerator gpu --trainer.devices "$GPUS" --trainer.num_nodes "$NODES" --trainer.strategy ddp \
  --ckpt_path last
