#!/bin/sh
# All GPUs of this machine: train/launch/one_node.sh train/configs/vitb16_paper.toml [overrides ...]
exec torchrun --standalone --nproc-per-node gpu "$(dirname "$0")/../train.py" "$@"
