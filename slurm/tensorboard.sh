#!/usr/bin/env bash
#SBATCH --job-name=fer-tensorboard
#SBATCH --nodes=1
#SBATCH --cpus-per-task=1 --mem=2G
#SBATCH --time=8:00:00
#SBATCH --requeue --open-mode=append --kill-on-invalid-dep=yes
#SBATCH --output=%x-%j.log
# Serves the curves of FER_RUNS, or of the folder given, to its own node only. The job's log has the
# ssh command that forwards the page to your machine.

# sbatch runs a copy of this file; Slurm knows where it was.
script=$(scontrol show job "${SLURM_JOB_ID-}" 2>/dev/null |
    sed -n 's|^ *Command=\(.*\)/tensorboard\.sh.*|\1|p' | head -n 1)
for here in "$script" "$(dirname "$0")" "${SLURM_SUBMIT_DIR-}"{/slurm,}; do
    [ ! -e "$here/env.sh" ] || break
done
# shellcheck source-path=SCRIPTDIR source=env.sh
. "$here/env.sh" || exit 2
case ${1:--} in -*) ;; *) FER_RUNS=$1 && shift ;; esac
# The port of this job number stays the same after a requeue.
ask_port="from fer_hpc.parallel.job import job_port; print(job_port(${SLURM_JOB_ID:-1}))"
port=$("${fer_python[@]}" -c "$ask_port") || exit 2
echo "on your own machine:  ssh -N -L $port:localhost:$port $(hostname)"
echo "                      (add -J LOGIN-NODE if the node cannot be reached from there)"
echo "then open             http://localhost:$port"
exec "${fer_python[@]}" -m tensorboard.main --logdir "$FER_RUNS" \
    --host localhost --port "$port" "$@"
