#!/usr/bin/env bash
#SBATCH --job-name=fer-preprocess
#SBATCH --nodes=1
#SBATCH --array=0-3
#SBATCH --cpus-per-task=2 --mem=2G
#SBATCH --time=4:00:00
#SBATCH --requeue --open-mode=append --kill-on-invalid-dep=yes --signal=B:USR1@30
#SBATCH --output=%x-%A_%a.log
# Turns raw faces into shards; the tasks of the array share the work:
#     sbatch --array=0-7 slurm/preprocess.sh --source fer2013 --input fer2013.csv

trap 'fer_signal=$((${fer_signal:-0} + 1))' USR1 USR2 TERM # kept until launch.sh acts on it
# sbatch runs a copy of this file; Slurm knows where it was.
script=$(scontrol show job "${SLURM_JOB_ID-}" 2>/dev/null |
    sed -n 's|^ *Command=\(.*\)/preprocess\.sh.*|\1|p' | head -n 1)
for here in "$script" "$(dirname "$0")" "${SLURM_SUBMIT_DIR-}"{/slurm,}; do
    [ -e "$here/launch.sh" ] || continue
    # shellcheck source-path=SCRIPTDIR source=launch.sh
    . "$here/launch.sh" preprocess "$@"
done
echo "found no launch.sh beside preprocess.sh: submit it from the folder that has slurm/" >&2
exit 2
