#!/usr/bin/env bash
#SBATCH --job-name=fer-gan
#SBATCH --nodes=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-gpu=1
#SBATCH --time=24:00:00
#SBATCH --requeue --open-mode=append --kill-on-invalid-dep=yes --signal=B:USR1@30
#SBATCH --output=%x-%j.log
# Trains the expression-transfer GAN. Any flag of fer_hpc.train_gan may follow.

trap 'fer_signal=$((${fer_signal:-0} + 1))' USR1 USR2 TERM # kept until launch.sh acts on it
# sbatch runs a copy of this file; Slurm knows where it was.
script=$(scontrol show job "${SLURM_JOB_ID-}" 2>/dev/null |
    sed -n 's|^ *Command=\(.*\)/train_gan\.sh.*|\1|p' | head -n 1)
for here in "$script" "$(dirname "$0")" "${SLURM_SUBMIT_DIR-}"{/slurm,}; do
    [ -e "$here/launch.sh" ] || continue
    export FER_FACES=${FER_FACES:-256x256x3}
    # shellcheck source-path=SCRIPTDIR source=launch.sh
    . "$here/launch.sh" train_gan "$@"
done
echo "found no launch.sh beside train_gan.sh: submit it from the folder that has slurm/" >&2
exit 2
