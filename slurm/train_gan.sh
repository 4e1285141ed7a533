#!/usr/bin/env bash
#SBATCH --job-name=fer-gan
#SBATCH --nodes=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-gpu=1
#SBATCH --time=24:00:00
#SBATCH --requeue --open-mode=append --signal=B:USR1@30
#SBATCH --output=%x-%j.log
# Trains the expression-transfer GAN. Any flag of fer_hpc.train_gan may follow.

for here in "$(dirname "$0")" "${SLURM_SUBMIT_DIR-}"{/slurm,}; do # sbatch runs a copy of this file
    [ ! -e "$here/launch.sh" ] || FER_FACES=256x256x3 exec "$here/launch.sh" train_gan "$@"
done
echo "$here has no launch.sh: submit from the folder that holds slurm/" >&2
exit 2
