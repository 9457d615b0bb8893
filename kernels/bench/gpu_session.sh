#!/usr/bin/env bash
# Prove and measure the GPU path on a machine that is rented for 30 minutes, in 28 at most. From a checkout, installed or not:
#
#   bash kernels/bench/gpu_session.sh                        # all parts, correctness first; stops if that is red
#   bash kernels/bench/gpu_session.sh --device cpu --quick   # the same with small problems, before a machine is rented
#   bash kernels/bench/gpu_session.sh --help
#
# Plan for a machine that allows 10 minutes per command, and keeps files outside the checkout between commands. Each
# command is bounded by the limits of its parts (in seconds); OUT is the folder that comes back.
#
#   0. Before: carry wheels of what the machine lacks. fit and slots need jsonargparse, docstring-parser, typeshed-client
#      and pytorch-metric-learning beside torch, timm and lightning; they are skipped without. Run --device cpu --quick.
#      Where .git does not come along, set VISIONATTN_REVISION to the output of git rev-parse HEAD.
#   1. gpu_session.sh smoke tests memory fit slots   470   Is it right? If red: mend it, and run this again.
#   2. gpu_session.sh tune attention                 550   Tiles are measured, and kept in ~/.cache/torch/visionattn.
#   3. gpu_session.sh na2d flex models halonet       470
#   4. gpu_session.sh compiled                       190
#   5. After: unpack the archives of OUT into kernels/bench/results. For kernels/README.md: markers of the tables
#      (attention-cuda, attention-na2d-cuda, attention-flex-cuda, attention-halonet-cuda, memory-cuda, gathered-cuda,
#      gathered-compiled-cuda, gathered-compiled-others-cuda, halonet-cuda), then python -m kernels.bench.table and plot. If
#      attention-untuned-cuda.csv is much slower than attention-cuda.csv, the default tiles are wrong: triton_tiles/ in
#      the archive holds the measured ones.
#
# What one command costs more than planned, the later ones have less of: 3 and 4 are worth least.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export PYTHONPATH="$root:$root/kernels${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m kernels.bench.session "$@"
