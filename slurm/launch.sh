# shellcheck shell=bash
# launch.sh [--job] VERB [ARGUMENTS...]: one fer_hpc command, in a job or outside.
#
# The scripts of slurm/ and sge/ and the jobs of jobs/*.py source this file. What a shell must do is
# here: ask the scheduler, start the processes, pass signals on, start the job again. What is
# decided, fer_hpc/cluster/launch.py decides. A site edits env.sh, not this.
# --job: the arguments are complete; without it the site's defaults come first.
# shellcheck disable=SC2317 # functions are called through fer_retry
set -uo pipefail # not -e: a program that fails once must not lose the job

fer_signal=${fer_signal:-0} fer_step=''
trap 'fer_signal=$((fer_signal + 1)); [ -z "$fer_step" ] ||
    kill -USR1 "$fer_step" 2>/dev/null' USR1 USR2 TERM

fer_here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=env.sh
. "$fer_here/env.sh"

fer_kind=''
if [ -n "${SLURM_JOB_ID:-}" ]; then
    fer_kind=slurm
elif [ -n "${JOB_ID:-}" ] && [ -n "${SGE_TASK_ID:-}" ]; then
    fer_kind=sge
    PATH=$PATH:${SGE_O_PATH:-} # the job's shell is a login shell, which may lack qstat
fi

fer_args=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do # behind -- is what submitit would run
    fer_args+=("$1")
    shift
done

fer_retry() { # COMMAND...: for 15 minutes, because a controller may be away
    local until=$((SECONDS + ${FER_RETRY_S:-900})) pause=1
    until "$@"; do
        if [ $SECONDS -ge $until ]; then
            echo "launch.sh: given up after ${FER_RETRY_S:-900} s: $*" >&2
            return 1
        fi
        sleep $pause
        [ $pause -ge 20 ] || pause=$((pause * 2))
    done
}

fer_ask() { # what the scheduler says about this job
    case $fer_kind in
    slurm) scontrol show job -d "$SLURM_JOB_ID" 2>/dev/null ;;
    sge) # a master that has just come back may not know its jobs yet
        local facts
        facts=$(qstat -j "$JOB_ID" -xml 2>/dev/null && qstat -s r -xml 2>/dev/null) || return
        [[ $facts != *unknown_jobs* || $((SECONDS - fer_asked)) -ge 60 ]] || return
        printf '%s\n' "$facts"
        ;;
    esac
}

fer_decide() { # begin or end; Grid Engine sends its signals to all processes of the job
    (trap '' USR1 USR2 TERM && exec "${fer_python[@]}" -m fer_hpc "$@")
}

fer_facts() {
    fer_asked=$SECONDS
    [ -z "$fer_kind" ] || fer_retry fer_ask
}

fer_take_gpus() { # COUNT: this job's GPUs; Grid Engine counts them, and the site may choose them
    local gpu lock handle all=() handles=() taken=()
    local by_site=${SGE_GPU:-${SGE_HGR_gpu:-${SGE_HGR_gpus:-}}}
    if [ -n "$by_site" ]; then
        export CUDA_VISIBLE_DEVICES=${by_site//[ ,]/,}
        return
    fi
    read -ra all -d '' <<<"${FER_GPUS:-$(find /dev -maxdepth 1 -name 'nvidia[0-9]*' |
      tr -dc '0-9\n')}"
    if [ ${#all[@]} -lt "$1" ]; then
        echo "launch.sh: $1 GPUs granted, and $HOSTNAME has ${#all[@]}; FER_GPUS names them" >&2
        exit 1
    fi
    for gpu in "${all[@]}"; do
        [ ${#taken[@]} -lt "$1" ] || break
        lock=/tmp/fer-gpu-$gpu.lock # which other users must be able to open
        (umask 022 && : >>"$lock") 2>/dev/null
        exec {handle}<"$lock" || continue
        if flock -n "$handle"; then
            taken+=("$gpu") handles+=("$handle")
        else
            exec {handle}<&-
        fi
    done
    if [ ${#taken[@]} -lt "$1" ]; then
        echo "launch.sh: $1 GPUs granted, ${#taken[@]} of this host's are free" >&2
        for handle in "${handles[@]}"; do exec {handle}<&-; done
        return 1
    fi
    CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${taken[*]}")
    CUDA_DEVICE_ORDER=PCI_BUS_ID # the numbers of /dev; CUDA's own begin with the fastest GPU
    export CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER
}

# ---- the code and the command: an edit does not change a job that starts again -------------------

case $fer_kind in
slurm) fer_copy=$FER_RUNS/.code/starts/slurm-$SLURM_JOB_ID ;;
sge) fer_copy=$FER_RUNS/.code/starts/sge-$JOB_ID && [ "$SGE_TASK_ID" = undefined ] ||
    fer_copy=$fer_copy.$SGE_TASK_ID ;;
*) fer_copy='' ;;
esac
fer_before=${SLURM_RESTART_COUNT:-${RESTARTED:-0}} # a first start takes no other job's copy
[ "$fer_before" = 0 ] || [ ! -s "$fer_copy" ] || read -r fer_kept <"$fer_copy"
if [ -d "${fer_kept:-}" ]; then
    export PYTHONPATH=$fer_kept${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1
fi
export PYTHONUNBUFFERED=1

# A user's mistake ends the job here with one message, before any rank starts.
fer_task=() fer_start='' fer_nodes=1 fer_ranks=1 fer_gpus=0 fer_job='' fer_logs='' fer_srun_logs=''
fer_again=no fer_pointer=''
fer_answer=$(fer_facts | fer_decide begin "${fer_args[@]}") || exit $?
eval "$fer_answer"
fer_command=("${fer_python[@]}" -m fer_hpc "${fer_task[@]}")
[ "$fer_start" != exec ] || exec "${fer_command[@]}"

# ---- the processes -------------------------------------------------------------------------------

if [ "${fer_task[0]}" = tune ]; then # Ray listens: only holders of the job's token may use it
    RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | base64 | tr -d '=+/')
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
fi
if [ "$fer_gpus" -gt 0 ] && [ -z "${CUDA_VISIBLE_DEVICES:-}" ]; then
    fer_retry fer_take_gpus "$fer_gpus" || exit 1
fi

fer_code=75 # of a job that is asked to stop before its processes have started
if [ "$fer_signal" = 0 ]; then
    if [ "$fer_start" = srun ]; then
        srun --nodes="$fer_nodes" --ntasks="$((fer_ranks * fer_nodes))" \
            --ntasks-per-node="$fer_ranks" --kill-on-bad-exit=1 --open-mode=append \
            --output="$fer_srun_logs/%j-%t.log" "${fer_command[@]}" \
            2>>"$fer_logs/$fer_job-srun.log" &
    else
        "${fer_command[@]}" >>"$fer_logs/$fer_job-0.log" 2>&1 &
    fi
    fer_step=$!
    fer_code=0
    while :; do # wait also returns when the trap has run
        fer_before=$fer_signal fer_last=$fer_code
        wait "$fer_step" 2>/dev/null && fer_code=0 || fer_code=$?
        [ "$fer_signal" != "$fer_before" ] || break
    done
    [ "$fer_code" != 127 ] || [ "$fer_last" = 0 ] || fer_code=$fer_last # had ended with the signal
    fer_step=''
fi

for fer_log in "$fer_logs/$fer_job-srun.log" "$fer_logs/$fer_job-0.log"; do
    if [ -s "$fer_log" ]; then # the end is copied to the job's log, where a person looks first
        echo "... $fer_log:"
        tail -n 20 "$fer_log"
    fi
done

# ---- the end -------------------------------------------------------------------------------------

fer_requeue=() fer_exit=$fer_code
fer_answer=$(fer_facts | fer_decide end "$fer_code" "$fer_again" "${fer_task[@]}")
eval "$fer_answer"
if [ ${#fer_requeue[@]} -gt 0 ]; then
    fer_retry "${fer_requeue[@]}" || echo 'launch.sh: not started again; submit again' >&2
elif [ "$fer_exit" != 99 ]; then
    rm -f "$fer_pointer"
fi
exit "$fer_exit"
