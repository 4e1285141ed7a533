#!/usr/bin/env bash
#$ -N fer-evaluate -S /bin/bash
#$ -pe omp 1
#$ -l h_rt=1:00:00,s_rt=0:57:00 -l gpus=1
#$ -r y -notify -cwd -j y
#$ -o $JOB_NAME-$JOB_ID.log
# Scores a run: `qsub sge/evaluate.sh RUN --split test`. Default: $FER_RUNS/resnet_improved.

trap 'fer_signal=$((${fer_signal:-0} + 1))' USR1 USR2 TERM # kept until launch.sh acts on it
# Grid Engine runs a copy of this file, and knows where it was.
PATH=$PATH:${SGE_O_PATH-}
script=$(qstat -j "${JOB_ID-}" 2>/dev/null |
    sed -n 's|^script_file: *\(.*\)/evaluate\.sh$|\1|p')
for here in "$script" "${SGE_O_WORKDIR-}/$script" "$(dirname "$0")" "${SGE_O_WORKDIR-}"{/sge,}; do
    [ -e "$here/../slurm/launch.sh" ] || continue
    # shellcheck source-path=SCRIPTDIR source=../slurm/launch.sh
    . "$here/../slurm/launch.sh" evaluate resnet_improved "$@"
done
echo "found no slurm/launch.sh near evaluate.sh: submit it from the folder that has slurm/" >&2
exit 2
