#!/usr/bin/env bash
#$ -N fer-cnn -S /bin/bash
#$ -pe omp 1
#$ -l h_rt=12:00:00,s_rt=11:57:00 -l gpus=1
#$ -r y -notify -cwd -j y
#$ -o $JOB_NAME-$JOB_ID.log
# Trains cnn_improved, or another preset: `qsub sge/train_cnn.sh cnn_baseline`. Any flag of
# fer_hpc.train may follow. `qsub -t 1-3 sge/train_cnn.sh` trains the seeds 1, 2 and 3.

trap 'fer_signal=$((${fer_signal:-0} + 1))' USR1 USR2 TERM # kept until launch.sh acts on it
# Grid Engine runs a copy of this file, and knows where it was.
PATH=$PATH:${SGE_O_PATH-}
script=$(qstat -j "${JOB_ID-}" 2>/dev/null |
    sed -n 's|^script_file: *\(.*\)/train_cnn\.sh$|\1|p')
for here in "$script" "${SGE_O_WORKDIR-}/$script" "$(dirname "$0")" "${SGE_O_WORKDIR-}"{/sge,}; do
    [ -e "$here/../slurm/launch.sh" ] || continue
    # shellcheck source-path=SCRIPTDIR source=../slurm/launch.sh
    . "$here/../slurm/launch.sh" train cnn_improved "$@"
done
echo "found no slurm/launch.sh near train_cnn.sh: submit it from the folder that has slurm/" >&2
exit 2
