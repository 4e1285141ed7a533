#!/usr/bin/env bash
#$ -N fer-preprocess -S /bin/bash
#$ -t 1-4 -pe omp 2
#$ -l h_rt=4:00:00,s_rt=3:57:00
#$ -r y -notify -cwd -j y
#$ -o $JOB_NAME-$JOB_ID.$TASK_ID.log
# Turns raw faces into shards; the tasks of the array share the work:
#     qsub -t 1-8 sge/preprocess.sh --source fer2013 --input fer2013.csv

trap 'fer_signal=$((${fer_signal:-0} + 1))' USR1 USR2 TERM # kept until launch.sh acts on it
# Grid Engine runs a copy of this file, and knows where it was.
PATH=$PATH:${SGE_O_PATH-}
script=$(qstat -j "${JOB_ID-}" 2>/dev/null |
    sed -n 's|^script_file: *\(.*\)/preprocess\.sh$|\1|p')
for here in "$script" "${SGE_O_WORKDIR-}/$script" "$(dirname "$0")" "${SGE_O_WORKDIR-}"{/sge,}; do
    [ -e "$here/../slurm/launch.sh" ] || continue
    # shellcheck source-path=SCRIPTDIR source=../slurm/launch.sh
    . "$here/../slurm/launch.sh" preprocess "$@"
done
echo "found no slurm/launch.sh near preprocess.sh: submit it from the folder that has slurm/" >&2
exit 2
