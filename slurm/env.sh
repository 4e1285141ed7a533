# shellcheck shell=bash disable=SC2034
# The one file a site edits. Every job reads it on its node; source it once in each shell before sbatch as well, so that
# sbatch knows partition and account, which a script cannot choose for itself:    . slurm/env.sh
# What is set already wins:    FER_DATA=/scratch/other sbatch slurm/train_cnn.sh

# module load python cuda                                 # whatever the site needs
# export SBATCH_PARTITION=gpu SBATCH_ACCOUNT=my-project
# export SBATCH_CPUS_PER_GPU=8 SBATCH_MEM_PER_GPU=32G     # the scripts ask for one core a GPU (there are no loader processes)

fer_home=$(cd -P "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

export FER_DATA="${FER_DATA:-$fer_home/shards}"           # shards; or a folder of 48x48x1/ and 224x224x3/, each for its networks
export FER_RUNS="${FER_RUNS:-$fer_home/runs}"             # run folders, on storage that every node sees
export FER_SCRATCH="${FER_SCRATCH:-}"                     # node-local folder that shards are copied to first; empty: read FER_DATA
export FER_SOURCE="${FER_SOURCE:-affectnet}"              # preprocess.sh: form of the raw faces, and where they are
export FER_INPUT="${FER_INPUT:-$fer_home/AffectNet}"

# The interpreter, as a command; a container is one too:    fer_python=(apptainer exec --nv fer.sif python)
fer_python=(python3)
[ ! -x "$fer_home/.venv/bin/python" ] || fer_python=("$fer_home/.venv/bin/python")
[ -z "${FER_PYTHON:-}" ] || fer_python=("$FER_PYTHON")
