#!/usr/bin/env bash
# MMDetection's launcher: tools/dist_train.sh CONFIG NUM_GPUS [more arguments of train_net.py]
# train_net.py reads the environment variables NNODES, NODE_RANK, MASTER_ADDR and PORT.
set -eu
config=${1:?usage: dist_train.sh CONFIG NUM_GPUS [arguments]}
gpus=${2:?usage: dist_train.sh CONFIG NUM_GPUS [arguments]}
shift 2
exec "${PYTHON:-python}" "$(dirname "$0")/train_net.py" --config-file "$config" --num-gpus "$gpus" "$@"
