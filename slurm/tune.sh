#!/usr/bin/env bash
#SBATCH --job-name=fer-tune
#SBATCH --nodes=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-gpu=4
#SBATCH --time=24:00:00
#SBATCH --requeue --open-mode=append --signal=B:USR1@60
#SBATCH --output=%x-%j.log
# Trains every batch size x learning rate x seed on all nodes of the job. Any flag of fer_hpc.tune
# may follow:    sbatch --nodes=2 slurm/tune.sh cnn_improved --lrs 0.01 0.003

for here in "$(dirname "$0")" "${SLURM_SUBMIT_DIR-}"{/slurm,}; do # sbatch runs a copy of this file
    [ ! -e "$here/launch.sh" ] || exec "$here/launch.sh" tune cnn_improved "$@"
done
echo "$here has no launch.sh: submit from the folder that holds slurm/" >&2
exit 2
