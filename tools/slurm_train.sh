#!/usr/bin/env bash
# MMDetection's launcher: tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [arguments]
# As in MMDetection, GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5, for each GPU), SRUN_ARGS and PORT
# are environment variables, and the script waits for the job; Ctrl-C ends the wait, not the job.
set -eu
usage="usage: slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [arguments]"
partition=${1:?$usage} name=${2:?$usage} config=${3:?$usage} work_dir=${4:?$usage}
shift 4
gpus=${GPUS:-8} each=${GPUS_PER_NODE:-8} cpus=${CPUS_PER_TASK:-5}
for number in "$gpus" "$each" "$cpus"; do
    if ! [[ $number =~ ^[1-9][0-9]*$ ]]; then
        echo "error: GPUS=$gpus GPUS_PER_NODE=$each CPUS_PER_TASK=$cpus: give positive integers" >&2
        exit 2
    fi
done
((each <= gpus)) || each=$gpus # MMDetection's script requests an entire node for GPUS=4
if ((gpus % each)); then
    echo "error: GPUS=$gpus is not a multiple of GPUS_PER_NODE=$each" >&2
    exit 2
fi
echo "GPUS=$gpus on $((gpus / each)) x $each, CPUS_PER_TASK=$cpus, SRUN_ARGS=${SRUN_ARGS:-}, PORT=${PORT:-any}"
exec "${PYTHON:-python}" "$(dirname "$0")/submit.py" --partition "$partition" --job-name "$name" \
    --config-file "$config" --work-dir "$work_dir" --num-machines $((gpus / each)) --num-gpus "$each" \
    --cpus-per-task $((cpus * each)) ${SRUN_ARGS:+--slurm="$SRUN_ARGS"} --wait "$@"
