#!/usr/bin/env bash
#SBATCH --job-name=fer-cnn
#SBATCH --nodes=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-gpu=1
#SBATCH --time=12:00:00
#SBATCH --requeue --open-mode=append --kill-on-invalid-dep=yes --signal=B:USR1@30
#SBATCH --output=%x-%j.log
# Trains cnn_improved, or another preset: `sbatch slurm/train_cnn.sh cnn_baseline`. Any flag of
# fer_hpc.train may follow. `sbatch --array=0-2 slurm/train_cnn.sh` trains the seeds 0, 1 and 2.

trap 'fer_signal=$((${fer_signal:-0} + 1))' USR1 USR2 TERM # kept until launch.sh acts on it
# sbatch runs a copy of this file; Slurm knows where it was.
script=$(scontrol show job "${SLURM_JOB_ID-}" 2>/dev/null |
    sed -n 's|^ *Command=\(.*\)/train_cnn\.sh.*|\1|p' | head -n 1)
for here in "$script" "$(dirname "$0")" "${SLURM_SUBMIT_DIR-}"{/slurm,}; do
    [ -e "$here/launch.sh" ] || continue
    # shellcheck source-path=SCRIPTDIR source=launch.sh
    . "$here/launch.sh" train cnn_improved "$@"
done
echo "found no launch.sh beside train_cnn.sh: submit it from the folder that has slurm/" >&2
exit 2
