#!/usr/bin/env bash
# launch.sh VERB [PRESET | RUN] [FLAGS...]
#
# Runs one fer_hpc command. Outside Slurm it is that command and nothing more. Inside a Slurm job it
# starts one task per GPU on every node, passes warning signals on to them, and afterwards requeues
# the job where the run folder calls for it; nothing else requeues. A site edits env.sh, not this.
# jobs/*.py call it too: after `--` comes the program that is started instead.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=env.sh
. "$here/env.sh"

verb=$1 name=''
shift
args=() task=()
while [ $# -gt 0 ]; do
    if [ "$1" = -- ]; then
        shift
        task=("$@")
        break
    fi
    args+=("$1")
    shift
done
set -- ${args[@]+"${args[@]}"}

# ---- the command: a script's defaults come first, the user's flags behind them win ---------------

if [ ${#task[@]} -eq 0 ]; then
    case $verb in
    train | train_gan | tune)
        if [ "$verb" != train_gan ]; then
            name=$1
            shift
            case ${1:--} in -*) ;; *) name=$1 && shift ;; esac # train_cnn.sh cnn_baseline
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
        case ${1:--} in -*) ;; *) run=$1 && shift ;; esac # evaluate.sh runs/mine
        set -- "$run" "$@"
        ;;
    preprocess)
        set -- --out "$FER_DATA" "$@"
        case " $* " in
        *' --source'*) ;;
        *) set -- --source "$FER_SOURCE" --input "$FER_INPUT" "$@" ;;
        esac
        if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
            first=${SLURM_ARRAY_TASK_MIN:?} # --array=1-8 counts from 1
            task_of_all=$((SLURM_ARRAY_TASK_ID - first))
            set -- "$@" --task "$task_of_all" --tasks "$SLURM_ARRAY_TASK_COUNT"
        fi
        ;;
    esac
    task=("${fer_python[@]}" -m fer_hpc "$verb" "$@")
fi

export PYTHONUNBUFFERED=1
if [ -z "${SLURM_JOB_ID:-}" ]; then
    exec "${task[@]}"
fi

# ---- the job, as Slurm describes it; read here because a container may lack Slurm's programs ----

job=$SLURM_JOB_ID # of an array's task both numbers: the bare number may mean the whole array
[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
starts_before=${SLURM_RESTART_COUNT:-0}
nodes=$SLURM_JOB_NUM_NODES

end_time() { # when the job will be ended, seconds since 1970
    local end
    end=$(squeue -h -j "$job" -o %e) && [ -n "$end" ] && date -d "$end" +%s
}

state_and_restarts() { # RUNNING/2
    local restarts
    restarts=$(scontrol show -o job "$job" | sed -n 's/.* Restarts=\([0-9]*\) .*/\1/p')
    echo "$(squeue -h -j "$job" -o %T || true)/$restarts"
}

if [ -z "${SLURM_JOB_END_TIME:-}" ] && end=$(end_time); then
    export SLURM_JOB_END_TIME=$end
fi
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR
unset MASTER_PORT # each task takes the port that belongs to the job number

tasks=1
case $verb in train | train_gan | evaluate | trial) tasks=${SLURM_GPUS_ON_NODE:-1} ;; esac
if [ "$verb" = tune ]; then # Ray listens on the network: only holders of the job's token may use it
    RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | base64 | tr -d '=+/')
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
fi

# A user's mistake ends the job here with one message, before any rank starts.
logs=$("${fer_python[@]}" -m fer_hpc begin "$((tasks * nodes))" "$verb" "$@")
echo "job $job, start $((starts_before + 1)): fer_hpc.$verb $*"
echo "on $SLURM_JOB_NODELIST, $tasks task(s) a node; each writes $logs/$SLURM_JOB_ID-RANK.log"

# ---- the ranks -----------------------------------------------------------------------------------

srun --nodes="$nodes" --ntasks="$((tasks * nodes))" --ntasks-per-node="$tasks" \
    --kill-on-bad-exit=1 --open-mode=append --output="$logs/%j-%t.log" "${task[@]}" &
step=$!
trap 'kill -USR1 "$step" 2>/dev/null || true' USR1 USR2 TERM # srun sends it to every task
code=0
while :; do
    wait "$step" && code=0 || code=$?
    kill -0 "$step" 2>/dev/null || break # wait also returns when a trap has run
done

rank0_log=$logs/$SLURM_JOB_ID-0.log
if [ -e "$rank0_log" ]; then # its end is copied to the job's log, where a person looks first
    echo "... $rank0_log:"
    tail -n 20 "$rank0_log"
fi

# ---- requeue, unless the job is being cancelled or was restarted while this node was cut off -----

# srun's exit code does not decide alone: it was seen to be 0 after a node had died.
if "${fer_python[@]}" -m fer_hpc end "$code" "$verb" "$@"; then
    now=$(state_and_restarts)
    if [ "$now" = "RUNNING/$starts_before" ]; then
        scontrol requeue "$job" || echo "job $job could not be requeued: submit again" >&2
    else
        echo "job $job does not belong to this script any more (now: $now): not requeued"
    fi
fi
exit "$code"
