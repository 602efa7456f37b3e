"""`make upstream`: Celery's and kombu's own integration suites against our broker and our result backend.

Fetches the sdists of the installed versions by name, unpacks them below `.local/upstream`, lifts the gates that skip tests
unless the result backend is Redis, and runs file by file on a database of its own, with a summary line per file. Nothing of the
suites is committed. What stays out, and what the suites take us for: docs/upstream.md.
Celery's suite uses a Redis server as a notebook for its assertions, so `redis-server` must be there.

    python -m tests.upstream.run [--pool prefork] [--with postgresql|redis] [kombu | test_tasks.py …] [-- pytest options]
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from celery_jobqueue.db import embedded, migrate
from tests.support.database import fresh_database

HERE = Path(__file__).parent
HOME = HERE.parents[1] / ".local" / "upstream"
PACKAGES = HOME / "packages"
#: Every wait in the suites is shorter, and the tests that hang are the ones to see.
TIMEOUT = 300
#: Ungated with the rest, but they read Redis' own keys, channels and client.
_READ_REDIS = (
    "test_tasks.py::test_task_redis_result_backend::test_asyncresult_forget_cancels_subscription",
    "test_tasks.py::test_task_redis_result_backend::test_asyncresult_get_cancels_subscription",
    "test_canvas.py::test_chord::test_chord_on_error",
    "test_redis_backend.py::test_decode_responses_disables_compression",
    "test_redis_backend.py::test_failure_expires",
    "test_redis_backend.py::test_pubsub_subscribe_churn_while_draining",
    "test_redis_backend.py::test_pubsub_reentrant_cancel_from_finalizer",
    "test_redis_backend.py::test_chord_expires",
    "test_redis_backend.py::test_chord_part_return_records_each_header_task_once",
)
#: The condition of two tests asks for the class that get_many() stands in; the test itself asks for what it does.
_GET_MANY_GATE = re.compile(r"isinstance\(manager\.app\.backend, BaseKeyValueStoreBackend\)(?=:\s+raise pytest\.skip\('get_many)")
#: Conditions of a skip only: where Redis is expected to do otherwise than RabbitMQ, we are not taken for it.
_REDIS_GATE = re.compile(r"""(if not [\w.]+)\.startswith\((?:'redis'|"redis"|\('redis', 'rpc'\))\)""")
_OUTCOMES = ("passed", "failed", "skipped", "xfailed")


def main() -> int:
    """Run what was asked for. Returns 1 when a test failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", help="kombu, celery, or files of Celery's t/integration; all without")
    parser.add_argument("--pool", default="prefork", choices=("prefork", "threads", "solo", "gevent"))
    parser.add_argument("--with", dest="broker", default="postgresql", choices=("postgresql", "redis"), help="redis: the control")
    # What follows "--" is pytest's: argparse itself would take it for names of files.
    arguments = sys.argv[1:]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    known, options = parser.parse_args(arguments[:end]), arguments[end + 1:]
    celery, kombu = _unpacked("celery"), _unpacked("kombu")
    _install_packages()
    total: Counter[str] = Counter()
    reports = HOME / f"reports-{known.broker}-{known.pool}"
    reports.mkdir(parents=True, exist_ok=True)
    print(f"{known.broker}, pool {known.pool}: logs and reports in {reports.relative_to(Path.cwd())}\n")
    with _redis() as redis_port, _server() as server:
        for suite, file in _chosen(known.files, celery, kombu, known.broker):
            started = time.monotonic()
            with fresh_database(server) as url:
                migrate.migrate(url, migrate.LINES)
                broker = url if known.broker == "postgresql" else f"redis://127.0.0.1:{redis_port}/1"
                counts = _run(suite, file, broker, redis_port, known.pool, reports, options)
            total += counts
            print(_line(file.name, counts, time.monotonic() - started), flush=True)
    print(_line("total", total, 0))
    return 1 if total["failed"] else 0


def _chosen(wanted: list[str], celery: Path, kombu: Path, broker: str) -> Iterator[tuple[Path, Path]]:
    ours = kombu / "t" / "integration" / "test_postgresql.py"
    shutil.copy(HERE / "kombu_classes.py", ours)
    if broker == "postgresql" and (not wanted or "kombu" in wanted):
        yield kombu, ours
    for file in sorted((celery / "t" / "integration").glob("test_*.py")):
        if not wanted or "celery" in wanted or file.name in wanted:
            yield celery, file


def _run(suite: Path, file: Path, broker: str, redis_port: int, pool: str, reports: Path, options: list[str]) -> Counter[str]:
    report, log = reports / f"{file.stem}.xml", reports / f"{file.stem}.log"
    report.unlink(missing_ok=True)
    environment = {
        **os.environ, "TEST_BROKER": broker, "TEST_BACKEND": broker, "TEST_POOL": pool, "PYTHONPATH": str(PACKAGES),
        "REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(redis_port),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    options = [*options, *(f"--deselect=t/integration/{test}" for test in _READ_REDIS if broker.startswith("postgresql"))]
    with log.open("wb") as output:
        code = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly", "-p", "celery.contrib.pytest",
             "-rfEsxX", "--log-level=INFO", "-o", f"timeout={TIMEOUT}", "-o", "xfail_strict=false",
             f"--junitxml={report}", str(file), *options],
            cwd=suite, env=environment, stdout=output, stderr=output, check=False).returncode
    return _counts(report) if report.exists() and code in (0, 1) else Counter(failed=1)


def _counts(report: Path) -> Counter[str]:
    """Outcomes by test; a test that was run again until it passed has passed."""
    outcomes: dict[tuple[str, str], str] = {}
    for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314  (pytest wrote it)
        key = (case.get("classname", ""), case.get("name", ""))
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            outcomes[key] = "failed"
        elif skipped is not None:
            outcomes[key] = "xfailed" if skipped.get("type") == "pytest.xfail" else "skipped"
        else:
            outcomes.setdefault(key, "passed")
    return Counter(outcomes.values())


def _line(name: str, counts: Counter[str], seconds: float) -> str:
    figures = "  ".join(f"{counts[outcome]:4d} {outcome}" for outcome in _OUTCOMES)
    return f"{name:44s} {figures}" + (f"  {seconds:6.0f} s" if seconds else "")


# -- what the suites need ----------------------------------------------------------------------------------------------

def _unpacked(name: str) -> Path:
    """The sdist of the installed version, unpacked and with the gates lifted."""
    release = f"{name}-{version(name)}"
    folder = HOME / release
    mark, recipe = folder / ".ready", Path(__file__).read_text()
    if not mark.exists() or mark.read_text() != recipe:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:",
                        "--dest", str(HOME), f"{name}=={version(name)}"], check=True)
        with tarfile.open(HOME / f"{release}.tar.gz") as archive:
            archive.extractall(HOME, filter="data")
        # The suite shall test the installed package, and the sdist's own copy of it lies in the working directory.
        shutil.rmtree(folder / name)
        for file in (folder / "t" / "integration").glob("*.py"):
            text = file.read_text()
            text = _REDIS_GATE.sub(r"\1.startswith(('redis', 'postgresql'))", text)
            text = _GET_MANY_GATE.sub("hasattr(manager.app.backend, 'get_many')", text)
            file.write_text(text.replace("    return 'prefork'\n", "    return os.environ['TEST_POOL']\n"))
        mark.write_text(recipe)
    return folder


def _install_packages() -> None:
    wanted = (HERE / "requirements.txt").read_text()
    mark = PACKAGES / ".installed"
    if mark.exists() and mark.read_text() == wanted:
        return
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(PACKAGES),
                    "-r", str(HERE / "requirements.txt")], check=True)
    mark.write_text(wanted)


@contextmanager
def _server() -> Iterator[str]:
    home = HOME / f"server-{os.getpid()}"
    try:
        yield embedded.ensure(home)
    finally:
        embedded.down(home)
        shutil.rmtree(home)


@contextmanager
def _redis() -> Iterator[int]:
    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("install the program redis-server: Celery's suite notes in it what its tasks did")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(HOME)],
                               stdout=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.terminate()
        process.wait(10)


if __name__ == "__main__":
    sys.exit(main())
