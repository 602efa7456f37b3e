"""psql and nothing else: a job from SQL is a Celery job like any other, and a shell script is a worker."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_jobqueue.db import embedded
from tests.support.database import one, rows
from tests.support.waiting import wait_until
from tests.support.workers import Worker

Start = Callable[..., Worker]
PSQL = embedded._binaries() / "psql"  # the one beside the embedded server, which `make demo` tells people of too
#: What says who, when and from where, and so differs between two jobs.
OWN = {"id", "task_id", "lease", "envelope", "reply_to"}
MOMENTS = ("created_at", "run_at", "started_at", "finished_at", "expires_at")

#: A worker in another language. It takes the queue `shell` until that is empty.
WORKER = r"""
set -eu
ask() { "$PSQL" -XqAt -v ON_ERROR_STOP=1 -v id="${id-}" -v lease="${lease-}" "$@" "$DATABASE_URL"; }

while row=$(echo "select id, lease_token, attempts, task_name, args from get_next_job('shell', 1, '1500 milliseconds')" | ask)
      [ -n "$row" ]
do
    IFS='|' read -r id lease attempts task args <<end
$row
end
    case $task in
    shell.shout)
        echo "select complete_job(:'id', :'lease', to_jsonb(upper(:'args'::jsonb ->> 0)))" | ask -v args="$args" ;;
    shell.patient)  # longer than its lease
        for second in 1 2 3; do
            sleep 1
            echo "select extend_job(:'id', :'lease', '1500 milliseconds') > now()" | ask
        done
        echo "select complete_job(:'id', :'lease', '{\"seconds\": 3}')" | ask ;;
    shell.moody)
        if [ "$attempts" = 1 ]
        then echo "select fail_job(:'id', :'lease', 'not in the mood')" | ask
        else echo "select complete_job(:'id', :'lease')" | ask
        fi ;;
    shell.broken)
        echo "select fail_job(:'id', :'lease', :'error', retry => false)" | ask -v error="it's broken: \$1" ;;
    shell.crash)
        if [ "$attempts" = 1 ]; then echo "$id $lease"; exit 7; fi
        echo "select complete_job(:'id', :'lease', '\"survived\"')" | ask ;;
    esac
done
"""


def psql(url: str, statement: str) -> str:
    """What psql prints, which has to succeed."""
    done = subprocess.run([PSQL, "-XqAt", "-v", "ON_ERROR_STOP=1", url, "-c", statement], capture_output=True, text=True,
                          timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def shell_worker(url: str, script: Path) -> subprocess.CompletedProcess[str]:
    """The worker's run until its queue is empty."""
    script.write_text(WORKER)
    return subprocess.run(["sh", str(script)], env={**os.environ, "DATABASE_URL": url, "PSQL": str(PSQL)}, capture_output=True,
                          text=True, timeout=60)


def job(url: str, task_id: str) -> dict[str, Any]:
    return rows(url, "select * from job_queue where task_id = %s", (task_id,))[0]


def compared(row: dict[str, Any]) -> dict[str, Any]:
    """What two equal jobs have in common; of moments that they are there and in which order."""
    row = {**row, "result_meta": (row["result_meta"] or "").replace(row["task_id"], "its own id")}
    same = {name: value for name, value in row.items() if name not in {*OWN, *MOMENTS, "payload", "errors"}}
    moments = [row[name] for name in MOMENTS[:4] if row[name]]
    return {**same, "arguments": json.loads(row["payload"])[:2], "there": {name for name in MOMENTS if row[name]},
            "in order": moments == sorted(moments), "at once": row["run_at"] - row["created_at"] < timedelta(seconds=1),
            "errors": [{**error, "at": None} for error in row["errors"] or ()]}


#: What is written in SQL, and the same for apply_async.
CALLS: list[tuple[str, str, dict[str, Any]]] = [
    ("'t.add', args => '[2, 3]', priority => 1", "t.add", {"args": (2, 3), "priority": 1}),
    ("'t.add', kwargs => '{\"x\": 2.5, \"y\": 3}', user_id => 'u', max_attempts => 7", "t.add",
     {"kwargs": {"x": 2.5, "y": 3}, "user_id": "u", "max_attempts": 7}),
    ("'t.boom', args => '[\"it''s ü\"]'", "t.boom", {"args": ("it's ü",)}),
    ("'t.again', args => '[2]'", "t.again", {"args": (2,)}),
    ("'t.add', args => '[1]'", "t.add", {"args": (1,)}),
    ("'t.add', args => '[1, 1]', expires_at => now() - interval '1 minute'", "t.add", {"args": (1, 1), "expires": -60}),
    ("'t.nobody'", "t.nobody", {}),
]


@pytest.mark.parametrize("acks", ["late", "early"])
def test_jobs_from_psql_are_like_those_from_delay(acks: str, app: Celery, database_url: str, start_worker: Start) -> None:
    start_worker("-c", "1", TEST_ACKS=acks)
    pairs = [(psql(database_url, f"SELECT enqueue_job({call})"), app.send_task(task, **options).id)
             for call, task, options in CALLS]
    wait_until(lambda: one(database_url, "select count(*) from job_queue where finished_at is not null and owner is null")
               == 2 * len(CALLS), "all are over")
    for theirs, ours in pairs:
        assert compared(job(database_url, theirs)) == compared(job(database_url, ours))
        ends = [app.AsyncResult(id_).get(timeout=10, propagate=False) for id_ in (theirs, ours)]
        assert (type(ends[0]), str(ends[0])) == (type(ends[1]), str(ends[1]))
    states = [job(database_url, theirs)["state"] for theirs, _ in pairs]
    assert states[:-1] == ["SUCCESS", "SUCCESS", "FAILURE", "SUCCESS", "FAILURE", "REVOKED"]


def test_a_shell_script_takes_a_queue(app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    start_worker("-c", "1")  # of another queue; like every worker it takes back what others have dropped
    script = tmp_path / "worker.sh"

    def send(task: str, *args: Any) -> Any:
        return app.send_task(f"shell.{task}", args=args, queue="shell")

    crash = send("crash")
    dead = shell_worker(database_url, script)
    assert dead.returncode == 7, dead.stderr
    id_, lease = dead.stdout.split()
    assert one(database_url, "select leased_until > now() from job_queue")
    results = {"shout": send("shout", "it's a 'quote' | $HOME"), "patient": send("patient"), "moody": send("moody"),
               "broken": send("broken"), "crash": crash}
    # The dropped job comes back when its lease has ended, and the moody one after its backoff.
    def over() -> bool:
        later = shell_worker(database_url, script)
        assert later.returncode == 0, later.stderr
        return one(database_url, "select count(*) from job_queue where status in ('completed', 'failed')") == 5

    wait_until(over, "the queue is done")
    assert psql(database_url, f"SELECT complete_job('{id_}', '{lease}', '\"too late\"')") == "f"
    values = {name: results[name].get(timeout=10, propagate=False) for name in results}
    assert values.pop("broken").args == ("it's broken: $1",)
    assert values == {"shout": "IT'S A 'QUOTE' | $HOME", "patient": {"seconds": 3}, "moody": None, "crash": "survived"}
    with pytest.raises(RuntimeError, match="it's broken"):
        results["broken"].get(timeout=10)
    ends = {name: job(database_url, result.id) for name, result in results.items()}
    assert {name: (row["status"], row["attempts"]) for name, row in ends.items()} == {
        "shout": ("completed", 1), "patient": ("completed", 1), "moody": ("completed", 2), "broken": ("failed", 1),
        "crash": ("completed", 2)}
    assert "stopped while the job was running" in ends["crash"]["errors"][0]["error"]
    assert ends["moody"]["errors"][0]["error"] == "not in the mood"
