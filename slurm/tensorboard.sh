#!/usr/bin/env bash
#SBATCH --job-name=fer-tensorboard
#SBATCH --nodes=1
#SBATCH --cpus-per-task=1 --mem=2G
#SBATCH --time=8:00:00
#SBATCH --requeue --open-mode=append
#SBATCH --output=%x-%j.log
# Serves the curves of FER_RUNS, or of the folder given, on its node's own loopback; the log has the line that leads there.

for here in "$(dirname "$0")" "${SLURM_SUBMIT_DIR-}"{/slurm,}; do # sbatch runs a copy of this file, elsewhere
    [ ! -e "$here/env.sh" ] || break
done
# shellcheck source-path=SCRIPTDIR source=env.sh
. "$here/env.sh" || exit 2
case ${1:--} in -*) ;; *) FER_RUNS=$1 && shift ;; esac
port=$((20000 + 7 * ${SLURM_JOB_ID:-1} % 12000)) # the same after a requeue
echo "on your own machine:  ssh -N -L $port:localhost:$port $(hostname)     (add -J LOGIN-NODE if the node cannot be reached)"
echo "then open             http://localhost:$port"
exec "${fer_python[@]}" -m tensorboard.main --logdir "$FER_RUNS" --host localhost --port "$port" "$@"
