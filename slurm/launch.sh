#!/usr/bin/env bash
# launch.sh VERB [PRESET | RUN] [FLAGS...]
#
# Runs one fer_hpc command: as it is outside Slurm; inside a Slurm job as one task per GPU on every node. It passes on the
# warning signals, and afterwards it alone requeues the job where the run wants that. Not for a site to edit: env.sh is.
# jobs/*.py call it too: behind a lone `--` they name the program that is to be started instead.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=env.sh
. "$here/env.sh"

verb=$1 name=''
shift
args=() task=()
while [ $# -gt 0 ]; do # behind a lone -- stands another program, which is to be started instead
    if [ "$1" = -- ]; then
        shift
        task=("$@")
        break
    fi
    args+=("$1")
    shift
done
set -- ${args[@]+"${args[@]}"}

if [ ${#task[@]} -eq 0 ]; then # a script's defaults; what the user gave stands behind them and wins
    case $verb in
    train | train_gan | tune)
        if [ "$verb" != train_gan ]; then
            name=$1
            shift
            case ${1:--} in -*) ;; *) name=$1 && shift ;; esac # sbatch slurm/train_cnn.sh cnn_baseline
        fi
        data=$FER_DATA run=$FER_RUNS/${name:-gan}
        [ ! -d "$data/${FER_FACES:-48x48x1}" ] || data=$data/${FER_FACES:-48x48x1}
        defaults=(${name:+"$name"} --data "$data")
        [ -z "$FER_SCRATCH" ] || defaults+=(--stage "$FER_SCRATCH")
        if [ "$verb" = tune ]; then
            set -- "${defaults[@]}" --out "$FER_RUNS/sweep-$name" "$@"
        elif [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then # sbatch --array=0-2: one seed each
            run=$run-seed$SLURM_ARRAY_TASK_ID
            defaults+=(--seed "$SLURM_ARRAY_TASK_ID")
        fi
        [ "$verb" = tune ] || set -- "${defaults[@]}" --run "$run" "$@"
        ;;
    evaluate)
        run=$FER_RUNS/$1
        shift
        case ${1:--} in -*) ;; *) run=$1 && shift ;; esac # sbatch slurm/evaluate.sh runs/mine
        set -- "$run" "$@"
        ;;
    preprocess)
        set -- --out "$FER_DATA" "$@"
        case " $* " in *' --source'*) ;; *) set -- --source "$FER_SOURCE" --input "$FER_INPUT" "$@" ;; esac
        if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
            first=${SLURM_ARRAY_TASK_MIN:?} # --array=1-8 counts from 1
            set -- "$@" --task "$((SLURM_ARRAY_TASK_ID - first))" --tasks "$SLURM_ARRAY_TASK_COUNT"
        fi
        ;;
    esac
    task=("${fer_python[@]}" -m fer_hpc "$verb" "$@")
fi

export PYTHONUNBUFFERED=1
if [ -z "${SLURM_JOB_ID:-}" ]; then
    exec "${task[@]}"
fi

job=$SLURM_JOB_ID # an array's task by both numbers: one of its tasks has the bare number of the whole array
[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
case $verb in train | train_gan | evaluate | trial) tasks=${SLURM_GPUS_ON_NODE:-1} ;; *) tasks=1 ;; esac

# What every rank must know, asked here because a container may lack Slurm's programs.
if [ -z "${SLURM_JOB_END_TIME:-}" ] && end=$(date -d "$(squeue -h -j "$job" -o %e)" +%s); then
    export SLURM_JOB_END_TIME=$end
fi
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + 7 * SLURM_JOB_ID % 12000))
if [ "$verb" = tune ]; then # its Ray listens on the network: only who has the job's token may talk to it
    RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | base64 | tr -d '=+/')
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
fi

# Mistakes are said once, here, before any rank starts.
logs=$("${fer_python[@]}" -m fer_hpc begin "$((tasks * SLURM_JOB_NUM_NODES))" "$verb" "$@")
echo "job $job, start $((${SLURM_RESTART_COUNT:-0} + 1)): fer_hpc.$verb $*"
echo "on $SLURM_JOB_NODELIST, $tasks task(s) a node; each writes $logs/$SLURM_JOB_ID-RANK.log"

srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$((tasks * SLURM_JOB_NUM_NODES))" --ntasks-per-node="$tasks" \
    --kill-on-bad-exit=1 --open-mode=append --output="$logs/%j-%t.log" "${task[@]}" &
step=$!
trap 'kill -USR1 "$step" 2>/dev/null || true' USR1 USR2 TERM # srun hands it to every task
code=0
while :; do
    wait "$step" && code=0 || code=$?
    kill -0 "$step" 2>/dev/null || break # wait also returns when a trap has run
done

if [ -e "$logs/$SLURM_JOB_ID-0.log" ]; then # the end of it, where a person looks first
    echo "... $logs/$SLURM_JOB_ID-0.log:"
    tail -n 20 "$logs/$SLURM_JOB_ID-0.log"
fi

# srun's code alone says little: it was seen to be 0 after a node had died. The run folder knows.
if "${fer_python[@]}" -m fer_hpc end "$code" "$verb" "$@"; then
    # Not where it is being cancelled, nor where it was started anew while this node was cut off.
    now=$(squeue -h -j "$job" -o %T || true)/$(scontrol show -o job "$job" | sed -n 's/.* Restarts=\([0-9]*\) .*/\1/p')
    case $now in
    RUNNING/"${SLURM_RESTART_COUNT:-0}") scontrol requeue "$job" || echo "job $job could not be requeued: submit again" >&2 ;;
    *) echo "job $job is not this script's any more (it is $now for Slurm): not requeued" ;;
    esac
fi
exit "$code"
