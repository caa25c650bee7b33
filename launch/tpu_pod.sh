#!/bin/bash
# Runs one command on every worker of a Cloud TPU slice, with gcloud, from a checkout of this repository:
#
#   launch/tpu_pod.sh up     --name=pi0 --zone=us-west4-a --type=v5litepod-16 --version=v2-alpha-tpuv5-lite [--spot]
#   launch/tpu_pod.sh run    --name=pi0 --zone=us-west4-a -- python -m launch.train --config=reach --workdir=gs://bucket/run
#   launch/tpu_pod.sh logs   --name=pi0 --zone=us-west4-a [--worker=0]     follows what the command prints
#   launch/tpu_pod.sh stop   --name=pi0 --zone=us-west4-a                  SIGTERM to all and waits: training saves, and `run` goes on
#   launch/tpu_pod.sh delete --name=pi0 --zone=us-west4-a                  the slice, whatever it runs
#
# `up` creates the slice unless there is one of that name, and installs the last commit; again after a new one. The workers find each
# other by themselves. With --dry_run every command is printed and none is run. Needs gcloud, logged in, with a default project.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "error: $*" >&2
    exit 2
}

action=${1:-}
case $action in
    up | run | logs | stop | delete) shift ;;
    *) fail "expected up, run, logs, stop or delete, found '$action'" ;;
esac
name='' zone='' type='' version='' worker=0 spot=() dry_run=''
while [ $# -gt 0 ]; do
    case $1 in
        --name=*) name=${1#*=} ;;
        --zone=*) zone=${1#*=} ;;
        --type=*) type=${1#*=} ;;
        --version=*) version=${1#*=} ;;
        --worker=*) worker=${1#*=} ;;
        --spot) spot=(--spot) ;;
        --dry_run) dry_run=1 ;;
        --) shift && break ;;
        *) fail "unknown argument '$1'; the command that the workers run comes after --" ;;
    esac
    shift
done
[ -n "$name" ] && [ -n "$zone" ] || fail "--name and --zone are needed"

# Arguments, quoted so that a shell reads the same ones again.
quoted() {
    local text
    printf -v text '%q ' "$@"
    echo "${text% }"
}

do_it() {
    if [ -n "$dry_run" ]; then
        quoted "$@"
    else
        "$@"
    fi
}

tpu() {
    local verb=$1
    shift
    do_it gcloud compute tpus tpu-vm "$verb" "$@" --zone="$zone"
}

# For the workers' shells.
# shellcheck disable=SC2016
running='[ -e run.pid ] && kill -0 "$(cat run.pid)" 2>/dev/null'
idle="if $running; then echo 'error: a command runs here; stop it first' >&2; exit 1; fi"

up() {
    [ -n "$type" ] && [ -n "$version" ] || fail "--type and --version are needed"
    [ -f setup.py ] || fail "up installs a checkout of the repository, and $PWD is none"
    if ! tpu describe "$name" --format='value(state)' || [ -n "$dry_run" ]; then
        tpu create "$name" --accelerator-type="$type" --version="$version" ${spot[@]+"${spot[@]}"}
    fi
    local folder
    folder=$(mktemp -d) # nobody else can put a file there
    # shellcheck disable=SC2064
    trap "rm -rf '$folder'" EXIT
    local archive=$folder/pi0_jax.tar.gz
    do_it git archive --format=tar.gz --output="$archive" HEAD
    tpu scp "$archive" "$name:pi0_jax.tar.gz" --worker=all
    # The Python of some TPU images is too old: uv brings one.
    tpu ssh "$name" --worker=all --command="set -e
$idle
rm -rf pi0_jax
mkdir pi0_jax
tar -xzf pi0_jax.tar.gz -C pi0_jax
python3 -m pip install --quiet --user uv
[ -d pi0_jax_env ] || python3 -m uv venv --quiet --python 3.12 pi0_jax_env
python3 -m uv pip install --quiet --python pi0_jax_env --editable 'pi0_jax[tpu,data,remote]'"
}

run() {
    [ $# -gt 0 ] || fail "expected the command that the workers run after --"
    # It outlives the connection, under the process number that `stop` ends.
    tpu ssh "$name" --worker=all --command="set -e
$idle
cd pi0_jax
export PATH=\"\$HOME/pi0_jax_env/bin:\$PATH\"
nohup $(quoted "$@") >>../run.log 2>&1 </dev/null &
echo \$! >../run.pid"
}

stop() {
    tpu ssh "$name" --worker=all --command="if $running; then kill -TERM \"\$(cat run.pid)\"; else echo 'nothing runs'; fi
while $running; do sleep 1; done"
}

case $action in
    up) up ;;
    run) run "$@" ;;
    logs) tpu ssh "$name" --worker="$worker" --command='tail -n 100 -F run.log' ;;
    stop) stop ;;
    delete) tpu delete "$name" --quiet ;;
esac
