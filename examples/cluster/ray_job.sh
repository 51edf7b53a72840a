#!/usr/bin/env bash
# A recipe, or any command, as a job of a running Ray cluster (KubeRay, Anyscale, a head node); ends with its exit code:
#
#     export RAY_API_SERVER_ADDRESS=http://HEAD:8265      # the cluster's dashboard
#     bash examples/cluster/ray_job.sh SHARED=/shared/me NNODES=2 GPUS=8 examples/text/t3.sh gpg_alpha
#     bash examples/cluster/ray_job.sh python -m verl.trainer.main_ppo algorithm.adv_estimator=gpg trainer.nnodes=2 ...
#     bash examples/cluster/ray_job.sh check algorithm.adv_estimator=gpg ...     # python -m gpg_verl check, over there
#     bash examples/cluster/ray_job.sh follow ID
#     bash examples/cluster/ray_job.sh stop ID
#
# The job works in a copy of this checkout, without what .gitignore names, which Ray takes to every node and removes
# later. So a recipe is told SHARED, a folder that all nodes see, for its runs and data, and a command has absolute
# paths. NAME=VALUE before the command are variables of all the job's processes. Ctrl-C ends the job, and what follows it
# here may be cut off: the job goes on. Variables of this script:
#
# VENV   the Python environment on the cluster (default: the python on the PATH of `ray start`)
# RAY    the command (default ray); its version is the cluster's
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
RAY=${RAY:-ray}
STOP_SECONDS=60 # from SIGTERM to the job's end; with GPG_GRACE that long

stop() {
    printf 'ray_job.sh: %s\n' "$1" >&2
    exit 2
}
command -v "$RAY" >/dev/null || stop "RAY=$RAY: no such command here: pip install 'ray[default]', in the cluster's version"

follow() { # its log to its end; then exits as the job id did
    local said
    while true; do
        # Of a failed job Ray then repeats the log's end; in the background it does not hear of Ctrl-C.
        { "$RAY" job logs --follow "$id" </dev/null | sed -u '/Status message: Job entrypoint command/,$d'; } &
        wait $! || true
        said=$("$RAY" job status "$id" 2>&1) || stop "job $id: Ray does not tell its status: $said"
        case $said in
            *"' succeeded"*) exit 0 ;;
            *"' was stopped"*) echo "ray_job.sh: job $id was stopped" >&2; exit 143 ;;
            *"' failed"*) break ;;
        esac
        sleep 1 # it begins, or the line was cut
    done
    said=$(grep -oP 'failed with exit code \K-?[0-9]+' <<<"$said" | head -n 1) || {
        "$RAY" job status "$id" >&2
        said=1
    }
    exit "$((said < 0 ? 128 - said : said))" # a signal ended it: as a shell says so
}
end() {
    printf '\nray_job.sh: ends job %s\n' "$id" >&2
    "$RAY" job stop "$id" >&2
}
trap 'trap "exit 130" INT; end || true; wait; exit 130' INT

id=gpg-$(date +%Y%m%d-%H%M%S)-$$
case ${1:-} in
    follow) id=${2:?which job?}; follow ;;
    stop) id=${2:?which job?}; end; exit ;;
esac

declare -A variables=()
while [[ ${1:-} =~ ^([A-Za-z_][A-Za-z0-9_]*)=(.*)$ ]]; do
    variables[${BASH_REMATCH[1]}]=${BASH_REMATCH[2]}
    shift
done
case ${1:-} in
    "") stop "which command? A recipe of examples/, python -m verl.trainer.main_ppo ..., check ..., follow ID, stop ID" ;;
    check) set -- python -m gpg_verl "$@" ;;
    *.sh)
        [[ ${variables[SHARED]:-} = /* ]] ||
            stop "SHARED=${variables[SHARED]:-}: a recipe needs SHARED=/a/folder that all nodes see, before its name"
        set -- bash "$@"
        ;;
esac
[ -z "${VENV:-}" ] || set -- bash -c 'PATH=$0/bin:$PATH exec "$@"' "$VENV" "$@"
seconds=${variables[GPG_GRACE]:-$STOP_SECONDS}
variables[RAY_JOB_STOP_WAIT_TIME_S]=${seconds%.*} # Ray's own is 3 s

pairs=()
for name in "${!variables[@]}"; do pairs+=("$name=${variables[$name]}"); done
environment=$(python3 -c 'import json, sys; print(json.dumps({"env_vars": dict(p.split("=", 1) for p in sys.argv[1:])}))' "${pairs[@]}")
said=$("$RAY" job submit --no-wait --submission-id "$id" --working-dir . --runtime-env-json "$environment" -- "$@" 2>&1) ||
    stop "Ray did not take the job: $said
RAY_API_SERVER_ADDRESS=${RAY_API_SERVER_ADDRESS:-} names the cluster's dashboard"
echo "ray_job.sh: job $id; bash examples/cluster/ray_job.sh follow $id, or stop $id" >&2
follow
