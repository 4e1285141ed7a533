#!/usr/bin/env bash
#$ -N fer-tune -S /bin/bash
#$ -pe omp 4
#$ -l h_rt=24:00:00,s_rt=23:57:00 -l gpus=1
#$ -r y -notify -cwd -j y
#$ -o $JOB_NAME-$JOB_ID.log
# Trains every batch size x learning rate x seed. Any flag of fer_hpc.tune
# may follow:    qsub sge/tune.sh cnn_improved --lrs 0.01 0.003

trap 'fer_signal=$((${fer_signal:-0} + 1))' USR1 USR2 TERM # kept until launch.sh acts on it
# Grid Engine runs a copy of this file, and knows where it was.
PATH=$PATH:${SGE_O_PATH-}
script=$(qstat -j "${JOB_ID-}" 2>/dev/null |
    sed -n 's|^script_file: *\(.*\)/tune\.sh$|\1|p')
for here in "$script" "${SGE_O_WORKDIR-}/$script" "$(dirname "$0")" "${SGE_O_WORKDIR-}"{/sge,}; do
    [ -e "$here/../slurm/launch.sh" ] || continue
    # shellcheck source-path=SCRIPTDIR source=../slurm/launch.sh
    . "$here/../slurm/launch.sh" tune cnn_improved "$@"
done
echo "found no slurm/launch.sh near tune.sh: submit it from the folder that has slurm/" >&2
exit 2
