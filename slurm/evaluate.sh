#!/usr/bin/env bash
#SBATCH --job-name=fer-evaluate
#SBATCH --nodes=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-gpu=1
#SBATCH --time=1:00:00
#SBATCH --requeue --open-mode=append --signal=B:USR1@30
#SBATCH --output=%x-%j.log
# Scores a run: `sbatch slurm/evaluate.sh RUN --split test`. Default: $FER_RUNS/resnet_improved.

for here in "$(dirname "$0")" "${SLURM_SUBMIT_DIR-}"{/slurm,}; do # sbatch runs a copy of this file
    [ ! -e "$here/launch.sh" ] || exec "$here/launch.sh" evaluate resnet_improved "$@"
done
echo "$here has no launch.sh: submit from the folder that holds slurm/" >&2
exit 2
