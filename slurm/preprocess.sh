#!/usr/bin/env bash
#SBATCH --job-name=fer-preprocess
#SBATCH --nodes=1
#SBATCH --array=0-3
#SBATCH --cpus-per-task=2 --mem=2G
#SBATCH --time=4:00:00
#SBATCH --requeue --open-mode=append --signal=B:USR1@30
#SBATCH --output=%x-%A_%a.log
# Turns raw faces into shards; the tasks of the array share the work:
#     sbatch --array=0-7 slurm/preprocess.sh --source fer2013 --input fer2013.csv

for here in "$(dirname "$0")" "${SLURM_SUBMIT_DIR-}"{/slurm,}; do # sbatch runs a copy of this file
    [ ! -e "$here/launch.sh" ] || exec "$here/launch.sh" preprocess "$@"
done
echo "$here has no launch.sh: submit from the folder that holds slurm/" >&2
exit 2
