"""The site of the Grid Engine of the tests: scripts, and what differs from the packages."""

from __future__ import annotations

from pathlib import Path

LIB = Path("/usr/lib/gridengine")

HOST_SCRIPT = """\
hostname {host}
for file in hosts nsswitch.conf resolv.conf; do
    [ -e /etc/$file ] && mount --bind {base}/$file /etc/$file
done
ip link set lo up
if [ {user} != root ] && [ "${{PYTHON#"$HOME"/}}" != "$PYTHON" ]; then  # users may not enter it
    mkdir {base}/python.{host}
    mount --bind "$PYTHON" {base}/python.{host}
    mount -t tmpfs -o mode=755 tmpfs "$HOME"
    mkdir -p "$PYTHON"
    mount --bind {base}/python.{host} "$PYTHON"
fi
touch {base}/{host}.up
while :; do wait; sleep 1; done
"""

CLIENT_SCRIPT = """\
#!/bin/sh
export SGE_ROOT={base}/sge SGE_CELL=default
# on a host of the cell
cmp -s /etc/hosts {base}/hosts && exec {lib}/{name} "$@"
exec nsenter -t {pid} --net --uts --pid --mount --wdns="$PWD" {become} {lib}/{name} "$@"
"""

# As many sites do it: a lock for each device, and a line in the file of the job's environment.
PROLOG = """\
#!/bin/bash
want=$({base}/bin/qstat -j "$JOB_ID" | sed -n '/^hard res/s/.*[ ,]gpus=\\([0-9]*\\).*/\\1/p')
locks={base}/gpus-$(uname -n) got=
for device in 0 1 2 3; do
    [ "${{want:-0}}" -gt 0 ] && mkdir -p "$locks" && mkdir "$locks/$device" 2>/dev/null || continue
    echo "$JOB_ID.$SGE_TASK_ID" >"$locks/$device/job"
    got=${{got:+$got,}}$device want=$((want - 1))
done
[ "${{want:-0}}" -eq 0 ] || exit 100
[ -z "$got" ] || echo "{variable}=$got" >>"$SGE_JOB_SPOOL_DIR/environment"
"""

EPILOG = """\
#!/bin/bash
for lock in {base}/gpus-$(uname -n)/*; do
    [ "$(cat "$lock/job" 2>/dev/null)" = "$JOB_ID.$SGE_TASK_ID" ] && rm -r "$lock"
done
exit 0
"""

QUEUE = {"slots": "8", "load_thresholds": "NONE", "pe_list": "omp smp"}

# What differs from the files of the packages.
BOOTSTRAP = {
    "admin_user": "none",
    "spooling_method": "classic",
    "spooling_lib": "libspoolc",
    "spooling_params": "{base}/sge/default/common;{base}/spool/qmaster",
    "binary_path": str(LIB),
    "qmaster_spool_dir": "{base}/spool/qmaster",
}
OMP = {"pe_name": "omp", "control_slaves": "FALSE", "accounting_summary": "FALSE"}
COMPLEX = {"relop": "<=", "default": "0", "urgency": "0"}
GPUS = COMPLEX | {"name": "gpus", "shortcut": "gpus", "consumable": "JOB"}
GPU_C = COMPLEX | {"name": "gpu_c", "shortcut": "gpu_c", "consumable": "NO", "type": "DOUBLE"}
PROJECT = "name vision\noticket 0\nfshare 0\nacl NONE\nxacl NONE\n"

# Short times; the rest is as installed, so a job is not rerun unless it asks. An execution daemon
# needs 30 s to find a master that was restarted, and its jobs must not count as lost by then.
GLOBAL = {
    "execd_spool_dir": "{base}/spool/execd",
    "prolog": "root@{base}/site/prolog",
    "epilog": "root@{base}/site/epilog",
    "min_uid": "0",
    "min_gid": "0",
    "load_report_time": "00:00:02",
    "max_unheard": "00:00:08",
    "reschedule_unknown": "00:00:40",
    # records are written at once; as installed within 15 s
    "reporting_params": "accounting=true reporting=false flush_time=00:00:00 joblog=false "
    "sharelog=00:00:00 accounting_flush_time=00:00:00",
}

SCHEDULER = {
    "schedule_interval": "0:0:1",
    "flush_submit_sec": "1",
    "flush_finish_sec": "1",
    "job_load_adjustments": "NONE",
}
