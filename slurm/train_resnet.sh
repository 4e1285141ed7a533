#!/usr/bin/env bash
#SBATCH --job-name=fer-resnet
#SBATCH --nodes=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-gpu=1
#SBATCH --time=24:00:00
#SBATCH --requeue --open-mode=append --signal=B:USR1@30
#SBATCH --output=%x-%j.log
# Trains resnet_improved (SE-ResNet-50). Any flag of fer_hpc.train may follow. On 8 GPUs:
#     sbatch --nodes=2 --gres=gpu:4 slurm/train_resnet.sh

for here in "$(dirname "$0")" "${SLURM_SUBMIT_DIR-}"{/slurm,}; do # sbatch runs a copy of this file
    [ ! -e "$here/launch.sh" ] ||
        FER_FACES=224x224x3 exec "$here/launch.sh" train resnet_improved "$@"
done
echo "$here has no launch.sh: submit from the folder that holds slurm/" >&2
exit 2
