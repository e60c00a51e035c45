#!/usr/bin/env bash
# Cancel the jobs of the cluster in FOLDER and end its daemons, those that start_cluster.sh FOLDER started and no others.
set -euo pipefail

folder=$(realpath "${1:?name the folder of the cluster}")
export SLURM_CONF=$folder/etc/slurm.conf

stop() {  # name pid_file
    local pid
    [[ -s $2 ]] || return 0
    pid=$(<"$2")
    if [[ $(cat "/proc/$pid/comm" 2>/dev/null) == "$1" ]]; then  # else the pid has passed to another program
        kill "$pid"
        for _ in {1..150}; do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        if kill -0 "$pid" 2>/dev/null; then
            echo "$1 ($pid) did not end within 15 s" >&2
            return 1
        fi
    fi
    rm -f "$2"
}

timeout 10 scancel --user=root || true
for _ in {1..100}; do  # slurmd, once stopped, would leave them running
    [[ -n $(timeout 10 squeue --noheader || true) ]] || break
    sleep 0.1
done
stop slurmd "$folder/run/slurmd.pid"
stop slurmctld "$folder/run/slurmctld.pid"
stop slurmdbd "$folder/run/slurmdbd.pid"
stop mariadbd "$folder/mariadb/pid"
stop munged "$folder/munge/pid"
