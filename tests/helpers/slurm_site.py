"""The configuration of the Slurm of the tests, and what a node runs."""

from __future__ import annotations

SLURM_CONF = """\
ClusterName=fer
SlurmctldHost={host}({address})
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
AuthType=auth/munge
AuthInfo=socket={base}/munge.socket,cred_expire=5
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={address}
AccountingStoragePort={dbd_port}
AccountingStoragePass={base}/munge.socket
AccountingStorageTRES=gres/gpu
SlurmUser=root
SlurmdUser=root
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool/%n
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd-%n.pid
SlurmctldLogFile={base}/slurmctld.log
SlurmdLogFile={base}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
MailProg=/bin/true
PropagateResourceLimits=NONE
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=200
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
ReturnToService=2
KillWait=3
SlurmdTimeout=5
MinJobAge=300
JobRequeue=1
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName=DEFAULT CPUs=4 Boards=1 Sockets=1 CoresPerSocket=4 ThreadsPerCore=1 RealMemory=8000
{nodes}
PartitionName=main Nodes=ALL Default=YES PriorityTier=10 PreemptMode=OFF
PartitionName=scavenge Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=8
"""

DBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={base}/munge.socket
DbdHost=localhost
DbdAddr={address}
DbdPort={dbd_port}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={sql_port}
StorageUser=slurm
StorageLoc=slurm_acct_db
LogFile={base}/slurmdbd.log
PidFile={base}/slurmdbd.pid
"""

NODE_SCRIPT = """\
hostname {node}
for file in hosts nsswitch.conf resolv.conf; do
    [ -e /etc/$file ] && mount --bind {base}/$file /etc/$file
done
slurmd -D -N {node} &
while :; do wait; sleep 1; done
"""
