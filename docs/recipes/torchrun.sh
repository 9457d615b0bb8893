#!/bin/bash
# Train on several nodes without a scheduler. Run it on each node, with the folder of the runs on a shared file system:
#
#   NODES=2 RANK0=node0 bash docs/recipes/torchrun.sh
#
# Run the same line again to resume a run that was stopped.
set -euo pipefail

NODES=${NODES:-1}                # number of nodes
GPUS=${GPUS:-8}                  # on each node
RANK0=${RANK0:-localhost}        # the node that the others connect to; it listens on PORT
PORT=${PORT:-29500}

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

torchrun --nnodes "$NODES" --nproc_per_node "$GPUS" \
  --rdzv_backend c10d --rdzv_endpoint "$RANK0:$PORT" --rdzv_id visionattn \
  train.py fit --config configs/imagenet/nat_tiny.yaml --data.root data/imagenet \
  --trainer.accelerator gpu --trainer.devices "$GPUS" --trainer.num_nodes "$NODES" --trainer.strategy ddp \
  --ckpt_path last
