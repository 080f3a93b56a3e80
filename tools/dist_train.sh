#!/usr/bin/env bash
# The guide's launcher: tools/dist_train.sh CONFIG NUM_GPUS [more arguments of train_net.py]
# NNODES, NODE_RANK, MASTER_ADDR and PORT of the environment are read by train_net.py itself.
set -eu
config=${1:?usage: dist_train.sh CONFIG NUM_GPUS [arguments]}
gpus=${2:?usage: dist_train.sh CONFIG NUM_GPUS [arguments]}
shift 2
exec "${PYTHON:-python}" "$(dirname "$0")/train_net.py" --config-file "$config" --num-gpus "$gpus" "$@"
