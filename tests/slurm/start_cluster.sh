#!/usr/bin/env bash
# A SLURM cluster of one node on this machine, for tests: start_cluster.sh FOLDER, as root. Everything it writes lies in
# FOLDER, and every daemon is started from there; stop_cluster.sh FOLDER ends them. Then
#     export SLURM_CONF=FOLDER/etc/slurm.conf
# lets sbatch, squeue and sacct find it. A started cluster is left as it is. CLUSTER_ACCOUNTING=no leaves out
# slurmdbd and its database: nobody then learns of a job that was killed.
set -euo pipefail

folder=$(realpath -m "${1:?name a folder for the cluster}")
accounting=${CLUSTER_ACCOUNTING:-yes}
cpus=${CLUSTER_CPUS:-4}  # that the node pretends to have
host=$(hostname -s)
socket=$folder/munge/socket
database=$folder/mariadb
export SLURM_CONF=$folder/etc/slurm.conf

install_packages() {
    local wanted=(slurm-wlm munge) missing=() package
    [[ $accounting == no ]] || wanted+=(slurmdbd mariadb-server-core mariadb-client-core)
    for package in "${wanted[@]}"; do
        dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done
    if ((${#missing[@]})); then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
    fi >"$folder/log/apt.log" 2>&1
}

running() { [[ -s $1 ]] && kill -0 "$(<"$1")" 2>/dev/null; }  # by pid file

wait_until() {  # command ...
    for _ in {1..150}; do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.1
    done
    echo "still failing after 15 s: $*; see the logs in $folder" >&2
    return 1
}

start_munge() {  # signs the messages of the others
    running "$folder/munge/pid" && return
    [[ -s $folder/munge/key ]] || head -c 1024 /dev/urandom >"$folder/munge/key"
    chown -R munge:munge "$folder/munge"
    chmod 400 "$folder/munge/key"
    setpriv --reuid=munge --regid=munge --clear-groups munged --socket="$socket" --key-file="$folder/munge/key" \
        --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
    wait_until munge --no-input --socket="$socket"
}

write_slurm_conf() {
    local ports
    mapfile -t ports < <(python3 - <<'PORTS'
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(one.getsockname()[1] for one in sockets), sep="\n")
PORTS
    )
    # SLURM counts a GPU by its device file: these stand in for two.
    printf "NodeName=$host Name=gpu File=%s\n" /dev/null /dev/zero >"$folder/etc/gres.conf"
    cat >"$SLURM_CONF" <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmdPort=${ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$socket,cred_expire=5
CredType=cred/munge
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
# Nothing that needs rights over the machine
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
# Quick answers: jobs start at once, and a signal is followed by the kill in 5 s
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
EnforcePartLimits=ALL
JobRequeue=1
ReturnToService=2
KillWait=5
InactiveLimit=0
MinJobAge=86400
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=8000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
    if [[ $accounting == no ]]; then
        echo "AccountingStorageType=accounting_storage/none" >>"$SLURM_CONF"
        return
    fi
    cat >>"$SLURM_CONF" <<CONF
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=${ports[2]}
AccountingStoragePass=$socket
CONF
    cat >"$folder/etc/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=${ports[2]}
SlurmUser=root
LogFile=$folder/log/slurmdbd.log
PidFile=$folder/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm_accounts
StoragePass=for_tests
StorageLoc=slurm_accounts
CONF
    chmod 600 "$folder/etc/slurmdbd.conf"
}

query() { mariadb --no-defaults --socket="$database/socket" --execute "$1"; }

start_database() {
    running "$database/pid" && return
    chown slurm:slurm "$database"
    if [[ ! -d $database/data ]]; then
        mariadb-install-db --no-defaults --user=slurm --datadir="$database/data" --skip-test-db \
            >"$folder/log/mariadb-install.log" 2>&1
    fi
    setsid mariadbd --no-defaults --user=slurm --datadir="$database/data" --socket="$database/socket" \
        --pid-file="$database/pid" --skip-networking --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 \
        --log-error="$folder/log/mariadb.log" </dev/null >/dev/null 2>&1 &
    wait_until query "select 1"
    query "create database if not exists slurm_accounts;
           create user if not exists slurm_accounts@localhost identified by 'for_tests';
           grant all on slurm_accounts.* to slurm_accounts@localhost;"
}

start_accounting() {
    start_database
    running "$folder/run/slurmdbd.pid" || MYSQL_UNIX_PORT=$database/socket slurmdbd
    wait_until sacctmgr --noheader show cluster
}

start_slurm() {
    running "$folder/run/slurmctld.pid" || slurmctld
    wait_until bash -c "scontrol ping | grep -q UP"
    running "$folder/run/slurmd.pid" || slurmd
    wait_until bash -c "sinfo --noheader --format=%t | grep -qE 'idle|mix|alloc'"
}

mkdir -p "$folder"/{etc,run,log,state,spool,munge,mariadb}
chmod 755 "$folder" "$folder"/{etc,run,log,munge}
install_packages
[[ -s $SLURM_CONF ]] || write_slurm_conf
start_munge
[[ $accounting == no ]] || start_accounting
start_slurm
sinfo --Node --format="%N: %t, %c processors, %m MB, %G"
echo "export SLURM_CONF=$SLURM_CONF"
