#!/usr/bin/env bash
#SBATCH --job-name=fer-evaluate
#SBATCH --nodes=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-gpu=1
#SBATCH --time=1:00:00
#SBATCH --requeue --open-mode=append --kill-on-invalid-dep=yes --signal=B:USR1@30
#SBATCH --output=%x-%j.log
# Scores a run: `sbatch slurm/evaluate.sh RUN --split test`. Default: $FER_RUNS/resnet_improved.

trap 'fer_signal=$((${fer_signal:-0} + 1))' USR1 USR2 TERM # kept until launch.sh acts on it
# sbatch runs a copy of this file; Slurm knows where it was.
script=$(scontrol show job "${SLURM_JOB_ID-}" 2>/dev/null |
    sed -n 's|^ *Command=\(.*\)/evaluate\.sh.*|\1|p' | head -n 1)
for here in "$script" "$(dirname "$0")" "${SLURM_SUBMIT_DIR-}"{/slurm,}; do
    [ -e "$here/launch.sh" ] || continue
    # shellcheck source-path=SCRIPTDIR source=launch.sh
    . "$here/launch.sh" evaluate resnet_improved "$@"
done
echo "found no launch.sh beside evaluate.sh: submit it from the folder that has slurm/" >&2
exit 2
