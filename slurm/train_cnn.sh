#!/usr/bin/env bash
#SBATCH --job-name=fer-cnn
#SBATCH --nodes=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-gpu=1
#SBATCH --time=12:00:00
#SBATCH --requeue --open-mode=append --signal=B:USR1@30
#SBATCH --output=%x-%j.log
# Trains cnn_improved, or another preset: `sbatch slurm/train_cnn.sh cnn_baseline`. Any flag of
# fer_hpc.train may follow. `sbatch --array=0-2 slurm/train_cnn.sh` trains the seeds 0, 1 and 2.

for here in "$(dirname "$0")" "${SLURM_SUBMIT_DIR-}"{/slurm,}; do # sbatch runs a copy of this file
    [ ! -e "$here/launch.sh" ] || exec "$here/launch.sh" train cnn_improved "$@"
done
echo "$here has no launch.sh: submit from the folder that holds slurm/" >&2
exit 2
