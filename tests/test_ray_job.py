"""The course of examples/cluster/ray_job.sh, with a stand-in of Ray's command that runs a job here."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples/cluster/ray_job.sh"

# As Ray 2.60: `logs --follow` and `status` of a failed job end with its exit code and the log's last lines.
RAY = r"""
said() {
    [ -e "$SEEN/pid" ] || { echo "Job '$id' does not exist" >&2; exit 1; }
    case $(cat "$SEEN/code" 2>/dev/null) in
        "") echo "Status for job '$id': RUNNING" ;;
        0) echo "Job '$id' succeeded" ;;
        stopped) echo "Job '$id' was stopped" ;;
        lost) printf "Job '%s' failed\nStatus message: The job supervisor actor died\n" "$id" ;;
        *)
            echo "Job '$id' failed"
            echo "Status message: Job entrypoint command failed with exit code $(cat "$SEEN/code"), last logs:"
            cat "$SEEN/log"
            ;;
    esac
}
[ "$1" = job ]; verb=$2; shift 2
case $verb in
    submit)
        [ -z "${NO_CLUSTER:-}" ] || { echo "ConnectionError" >&2; exit 1; }
        printf '%s\n' "$@" >"$SEEN/submitted"
        while [ "$1" != -- ]; do shift; done; shift
        eval "set -- $(printf '%q ' "$@")" # Ray joins the words, and a shell of its own reads them
        (setsid "$@" >"$SEEN/log" 2>&1 & echo $! >"$SEEN/pid"; wait $!; code=$?
         [ -e "$SEEN/code" ] || echo "${LOST:-$code}" >"$SEEN/code") >/dev/null 2>&1 &
        until [ -e "$SEEN/pid" ]; do sleep 0.02; done
        ;;
    logs)
        id=$2
        until [ -e "$SEEN/code" ] || [ ! -e "$SEEN/pid" ]; do sleep 0.05; [ -z "${CUT:-}" ] || exit 1; done
        cat "$SEEN/log" 2>/dev/null; said ;;
    status) id=$1; said ;;
    stop) echo stopped >"$SEEN/code"; kill -- "-$(cat "$SEEN/pid")" ;;
esac
"""


@pytest.fixture
def job(tmp_path):
    seen = tmp_path / "seen"
    seen.mkdir()
    (tmp_path / "ray").write_text(f"#!/usr/bin/env bash\n{RAY}")
    (tmp_path / "ray").chmod(0o755)

    def start(*words: str, **variables: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", SCRIPT, *words],
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "SEEN": str(seen), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # whoever started the tests may ignore it
        )

    start.seen = seen
    return start


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    said, told = process.communicate(timeout=60)
    return process.returncode, said, told


def submitted(job) -> tuple[dict, list[str]]:
    """(the job's variables, its command)"""
    words = (job.seen / "submitted").read_text().splitlines()
    before, command = words[: words.index("--")], words[words.index("--") + 1 :]
    assert before[before.index("--working-dir") + 1] == "."
    return json.loads(before[before.index("--runtime-env-json") + 1])["env_vars"], command


@pytest.mark.parametrize(("script", "variables", "code", "reason"), [
    ("echo step; sleep 0.3; echo last", {}, 0, "follow gpg-"),
    ("echo step; sleep 0.3; echo last; exit 1", {}, 1, "follow gpg-"),
    ("exit 75", {}, 75, ""),
    ("exit -9", {}, 128 + 119, ""),  # 247 of bash's
    ("sleep 1.5; exit 3", {"CUT": "1"}, 3, ""),  # a lost connection is taken up again
    ("true", {"LOST": "-9"}, 137, ""),  # a signal, as a shell says so
    ("true", {"LOST": "lost"}, 1, "supervisor actor died"),
])  # fmt: skip
def test_it_shows_the_log_once_and_ends_with_the_jobs_code(job, script, variables, code, reason):
    returned, said, told = ended(job("bash", "-c", script, **variables))
    assert returned == code
    assert said.startswith("step\nlast\n" if "last" in script else "")
    assert said.count("last") == script.count("last")
    assert reason in told


def test_variables_and_words_arrive_as_they_are(job):
    words = [
        "NAME=a b'c",
        "EMPTY=",
        "GPG_GRACE=300",
        "python3",
        "-c",
        "import sys; print(sys.argv[1:])",
        "x=[1,2]",
        "y z",
    ]
    returned, said, _ = ended(job(*words))
    variables, command = submitted(job)
    assert variables == {"NAME": "a b'c", "EMPTY": "", "GPG_GRACE": "300", "RAY_JOB_STOP_WAIT_TIME_S": "300"}
    assert command == words[3:]
    assert (returned, said.splitlines()[0]) == (0, "['x=[1,2]', 'y z']")


@pytest.mark.parametrize(("words", "command"), [
    (["SHARED=/s", "examples/text/t3.sh", "gpg_alpha"], "bash examples/text/t3.sh gpg_alpha"),
    (["check", "algorithm.adv_estimator=gpg"], "python -m gpg_verl check algorithm.adv_estimator=gpg"),
])  # fmt: skip
def test_what_is_run(job, words, command):
    process = job(*words, PYTHONPATH="/nowhere")
    while not (job.seen / "pid").exists():
        time.sleep(0.02)
    assert submitted(job)[1] == shlex.split(command)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_the_environment_on_the_cluster_comes_first(job, tmp_path):
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/bin/python").write_text("#!/bin/sh\necho the cluster: $*\n")
    (tmp_path / "venv/bin/python").chmod(0o755)
    _, said, _ = ended(job("check", "a=b c", VENV=str(tmp_path / "venv")))
    assert said.splitlines()[0] == "the cluster: -m gpg_verl check a=b c"


def running(job) -> None:
    until = time.monotonic() + 20
    while not (job.seen / "log").exists() or "begun" not in (job.seen / "log").read_text():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize(("elsewhere", "code", "reason"), [(False, 130, "ends job gpg-"), (True, 143, "was stopped")])
def test_a_job_that_is_ended(job, elsewhere, code, reason):
    """By Ctrl-C here, or by `stop` in another place."""
    process = job("bash", "-c", "echo begun; exec sleep 600")
    running(job)
    if elsewhere:
        assert job("stop", "gpg-1").wait(timeout=20) == 0
    else:
        os.killpg(process.pid, signal.SIGINT)
    returned, _, told = ended(process)
    assert returned == code
    assert reason in told
    assert (job.seen / "code").read_text() == "stopped\n"


@pytest.mark.parametrize(("words", "variables", "said"), [
    ([], {}, "which command?"),
    (["examples/text/t3.sh", "gpg_alpha"], {}, "SHARED=: a recipe needs SHARED=/a/folder that all nodes see"),
    (["SHARED=here", "examples/text/t3.sh"], {}, "SHARED=here: a recipe needs"),
    (["true"], {"RAY": "no-ray"}, "RAY=no-ray: no such command here"),
    (["true"], {"NO_CLUSTER": "1", "RAY_API_SERVER_ADDRESS": "http://there:8265"}, "=http://there:8265 names"),
    (["follow", "gpg-1"], {}, "Job 'gpg-1' does not exist"),
])  # fmt: skip
def test_what_it_cannot_do_is_named(job, words, variables, said):
    returned, _, told = ended(job(*words, **variables))
    assert returned == 2
    assert said in told
