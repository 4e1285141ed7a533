#!/usr/bin/env bash
#SBATCH --job-name=fer-tune
#SBATCH --nodes=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-gpu=4
#SBATCH --time=24:00:00
#SBATCH --requeue --open-mode=append --kill-on-invalid-dep=yes --signal=B:USR1@60
#SBATCH --output=%x-%j.log
# Trains every batch size x learning rate x seed on all nodes of the job. Any flag of fer_hpc.tune
# may follow:    sbatch --nodes=2 slurm/tune.sh cnn_improved --lrs 0.01 0.003

trap 'fer_signal=$((${fer_signal:-0} + 1))' USR1 USR2 TERM # kept until launch.sh acts on it
# sbatch runs a copy of this file; Slurm knows where it was.
script=$(scontrol show job "${SLURM_JOB_ID-}" 2>/dev/null |
    sed -n 's|^ *Command=\(.*\)/tune\.sh.*|\1|p' | head -n 1)
for here in "$script" "$(dirname "$0")" "${SLURM_SUBMIT_DIR-}"{/slurm,}; do
    [ -e "$here/launch.sh" ] || continue
    # shellcheck source-path=SCRIPTDIR source=launch.sh
    . "$here/launch.sh" tune cnn_improved "$@"
done
echo "found no launch.sh beside tune.sh: submit it from the folder that has slurm/" >&2
exit 2
