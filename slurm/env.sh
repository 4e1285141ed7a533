# shellcheck shell=bash disable=SC2034
# The one file a site edits. Every job reads it on its node. Source it once in each shell before
# sbatch or qsub as well (bash or zsh), because a script cannot choose partition and account for
# itself:
#     . slurm/env.sh
# A variable that is set already keeps its value:
#     FER_DATA=/scratch/other sbatch slurm/train_cnn.sh

# module load python cuda                                 # the modules that the site needs
# export SBATCH_PARTITION=gpu SBATCH_ACCOUNT=my-project
# export SBATCH_CPUS_PER_GPU=8 SBATCH_MEM_PER_GPU=32G     # default of the scripts: one core a GPU

# $0 is this file's path in zsh, BASH_SOURCE in bash.
fer_home=$(cd -P "$(dirname "${BASH_SOURCE[0]:-$0}")/.." >/dev/null && pwd -P)
export FER_SITE="$fer_home" # the folder of slurm/, sge/ and jobs/

# Shards; or a folder of 48x48x1/ and 224x224x3/, of which each network takes its own.
export FER_DATA="${FER_DATA:-$fer_home/shards}"
# Run folders, on storage that every node sees.
export FER_RUNS="${FER_RUNS:-$fer_home/runs}"
# Node-local folder that shards are copied to first; empty: they are read where they are.
export FER_SCRATCH="${FER_SCRATCH:-}"
# preprocess.sh: the form of the raw faces, and where they are.
export FER_SOURCE="${FER_SOURCE:-affectnet}"
export FER_INPUT="${FER_INPUT:-$fer_home/AffectNet}"

# The interpreter, as a command, for example (apptainer exec --nv fer.sif python). Empty: the one
# that submitted the job, else .venv, else the one in the next lines. FER_PYTHON comes before all.
fer_python=()
if [ ${#fer_python[@]} -eq 0 ]; then
    fer_python=(python3)
    [ ! -x "$fer_home/.venv/bin/python" ] || fer_python=("$fer_home/.venv/bin/python")
    [ -z "${FER_SUBMIT_PYTHON:-}" ] || fer_python=("$FER_SUBMIT_PYTHON")
fi
[ -z "${FER_PYTHON:-}" ] || fer_python=("$FER_PYTHON")

# The network interface of several nodes, as `ip -br addr` names it; empty: chosen by torch.
# export FER_INTERFACE=ib0
# Grid Engine: numbers of this host's GPUs; empty: all. Each job takes as many as it was granted.
# export FER_GPUS="0 1 2 3"
