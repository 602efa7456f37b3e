"""`make demo` and the first commands after it, as somebody types them who has just arrived."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pypdfium2
import pytest

from tests.support.certificates import ATTENDEES
from tests.support.database import rows
from tests.support.issuing import USER, add_event, path_of
from tests.support.waiting import wait_until
from tests.support.workers import ROOT

BIN = Path(sys.executable).parent
DEMO = [sys.executable, "-m", "tasks.demo"]


class Place:
    """An empty folder to run things in, with a PostgreSQL of its own and nothing else set."""

    first: subprocess.CompletedProcess[str]

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.env = {name: value for name, value in os.environ.items()
                    if name not in ("DATABASE_URL", "STORAGE_URL") and not name.startswith(("AWS_", "CELERY_", "JOBQUEUE_"))}
        self.env |= {"JOBQUEUE_HOME": str(self.home), "PYTHONPATH": str(ROOT)}

    def run(self, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(command, cwd=self.folder, env={**self.env, **env}, capture_output=True, text=True, timeout=90,
                              stdin=subprocess.DEVNULL, check=False)

    def processes(self) -> list[str]:
        """Command lines of everything that runs for this place."""
        mark, found = f"JOBQUEUE_HOME={self.home}".encode(), []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue  # it has ended meanwhile
        return found

    def strangers(self) -> list[str]:
        """Those that are no part of PostgreSQL."""
        return [command for command in self.processes() if "postgres" not in command.partition(" ")[0]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One place for all tests of this file, after the first run there."""
    made = Place(tmp_path_factory.mktemp("newcomer"))
    made.first = made.run(*DEMO)
    yield made
    made.run(str(BIN / "jobqueue"), "down")
    wait_until(lambda: not made.processes(), "nothing runs any more")


def commands(output: str) -> dict[str, str]:
    """What the demo tells to type, by its label."""
    more = output.partition("Look further\n")[2]
    return {match[1]: match[2] for match in re.finditer(r"^  (a worker|Flower|the queue|SQL|PostgreSQL runs on; this stops it:) +"
                                                        r"(\S.*?)(?: {4,}then .*)?$", more, re.MULTILINE)}


def test_the_demo_issues_certificates(place: Place) -> None:
    done = place.first
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "PostgreSQL    starting a server of our own (DATABASE_URL is not set)…"
    assert re.search(r"^PostgreSQL +postgresql://jobqueue:\*\*@127\.0\.0\.1:\d+/jobqueue$", done.stdout, re.MULTILINE)
    assert re.search(r"^Schema +applied queue/0001, .*certificates/0001", done.stdout, re.MULTILINE)
    assert "Processing in background…" in lines
    issued = dict(re.findall(r"^  ✓ (\S+\.pdf)  (.+)$", done.stdout, re.MULTILINE))
    assert sorted(issued.values()) == sorted(ATTENDEES)
    for path in issued:
        document = pypdfium2.PdfDocument(place.folder / path)
        assert len(document) == 1
        document.close()
    assert f"{len(ATTENDEES)} certificates issued" in lines
    assert list(commands(done.stdout)) == ["a worker", "Flower", "the queue", "SQL", "PostgreSQL runs on; this stops it:"]
    assert (place.home / "demo-worker.log").exists()
    assert place.strangers() == []


def test_a_second_run_in_a_terminal_shows_progress_and_commands_that_work(place: Place, tmp_path: Path) -> None:
    """On a machine without psql: the one of the embedded server is told then."""
    place.run(str(BIN / "jobqueue"), "up")
    for program in ("bash", "env", "unshare", "setpriv"):
        if found := shutil.which(program):
            (tmp_path / program).symlink_to(found)
    terminal, screen = pty.openpty()
    process = subprocess.Popen(DEMO, cwd=place.folder, env={**place.env, "PATH": str(tmp_path), "TERM": "xterm"}, stdout=screen,
                               stderr=screen, stdin=subprocess.DEVNULL, start_new_session=True)
    os.close(screen)
    output = "".join(_until_closed(terminal)).replace("\r\n", "\n")
    assert process.wait(30) == 0
    assert "Schema        up to date" in output
    assert output.count("  ✓ ") == len(ATTENDEES)
    assert re.search(rf"\r\[#+ +\] \d+/{len(ATTENDEES)}", output)
    told = commands(output)
    rows = place.run("bash", "-c", told["SQL"], PATH=str(tmp_path))
    assert rows.stderr == ""
    assert rows.stdout.count("| tasks.generate_certificate |") >= 2 * len(ATTENDEES)
    # What another test has interrupted was taken back; nothing else failed.
    assert [row for row in rows.stdout.splitlines() if "failed" in row and "revoked" not in row] == []
    status = place.run("bash", "-c", told["the queue"], PATH=str(tmp_path))
    assert re.search(r"jobs +0 pending, 0 processing, \d{2,} completed, \d+ failed", status.stdout)
    assert place.run("bash", "-c", f"{told['Flower']} --help", PATH=str(tmp_path)).returncode == 0


def _until_closed(terminal: int) -> Iterator[str]:
    with os.fdopen(terminal, "rb", buffering=0) as file:
        while True:
            try:
                yield file.read(4096).decode(errors="replace")
            except OSError:  # how Linux says that the other side has gone
                return


@pytest.mark.parametrize(("moment", "numbers"), [
    ("Worker  ", [signal.SIGINT]), ("Processing in background", [signal.SIGINT]), ("Worker  ", [signal.SIGINT] * 3),
    ("Event  ", [signal.SIGTERM]),
], ids=["as soon as the worker runs", "while it works", "impatient", "terminated before the worker runs"])
def test_ctrl_c_leaves_nothing_but_the_server(moment: str, numbers: list[signal.Signals], place: Place) -> None:
    with subprocess.Popen(DEMO, cwd=place.folder, env=place.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          stdin=subprocess.DEVNULL, start_new_session=True) as process:
        assert process.stdout
        lines = []
        while not (lines and lines[-1].startswith(moment)):
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        for number in numbers:
            os.killpg(process.pid, number)  # a terminal sends it to the whole group
        rest = process.stdout.read()
        assert process.wait(60) == 130, rest
    assert "Traceback" not in rest
    assert rest.rstrip().endswith("stopped; PostgreSQL runs on, `jobqueue down` stops it")
    assert place.strangers() == []
    assert place.run(str(BIN / "jobqueue"), "status").returncode == 0
    down = place.run(str(BIN / "jobqueue"), "down")
    assert (down.returncode, down.stdout) == (0, "PostgreSQL is stopped\n")
    wait_until(lambda: not place.processes(), "nothing runs any more")


# Ctrl-C where the worker is about to be stopped: a moment that no signal from outside hits twice.
_AT_THE_DOOR = """
import os, signal, sys
from tasks import demo

def ctrl_c(frame, event, _):
    if (frame.f_code.co_name, frame.f_globals.get("__name__")) == ("_stop", demo.__name__):
        sys.settrace(None)
        os.kill(os.getpid(), signal.SIGINT)

def tell(text, tell=demo._LINE, **options):
    tell(text, **options)
    if text.startswith(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGINT)

demo._LINE = tell
sys.settrace(ctrl_c)
sys.exit(demo._run())
"""


@pytest.mark.parametrize("before", ["Worker  ", "never"])
def test_ctrl_c_on_the_way_to_stopping_the_worker_stops_it_all_the_same(before: str, place: Place) -> None:
    done = place.run(sys.executable, "-c", _AT_THE_DOOR, before)
    assert (done.returncode, done.stderr) == (130, "")
    assert done.stdout.rstrip().endswith("stopped; PostgreSQL runs on, `jobqueue down` stops it")
    assert place.strangers() == []


def test_a_database_that_is_not_there_is_an_error_not_a_traceback(place: Place) -> None:
    done = place.run(*DEMO, DATABASE_URL="postgresql://me:secret@127.0.0.1:1/nothing")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "refused" in done.stderr
    assert "secret" not in done.stdout + done.stderr


def test_jobs_of_another_application_are_left_alone(place: Place, database_url: str) -> None:
    """The demo's worker does not know their tasks and would fail them."""
    rows(database_url, "select enqueue_job('shop.invoice')")
    done = place.run(*DEMO, DATABASE_URL=database_url)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "shop.invoice" in done.stderr
    assert rows(database_url, "select status from job_queue") == [{"status": "pending"}]


@pytest.mark.parametrize("given", ["nothing", "only DATABASE_URL"])
def test_a_worker_and_delay_need_no_more(given: str, place: Place, database_url: str) -> None:
    env = {} if given == "nothing" else {"DATABASE_URL": database_url}
    event = add_event(env.get("DATABASE_URL") or place.run(str(BIN / "jobqueue"), "up", "--show-url").stdout.strip())
    script = (f"from tasks import generate_certificate as task; "
              f"print(task.delay(event_id='{event}', recipient_name='Ada', user_id='{USER}').get(timeout=60)['url'])")
    log = place.folder / "worker.log"
    with log.open("wb") as file:
        worker = subprocess.Popen([str(BIN / "celery"), "-A", "tasks", "worker"], cwd=place.folder, env={**place.env, **env},
                                  stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        done = place.run(sys.executable, "-c", script, **env)
        assert (done.returncode, done.stderr) == (0, ""), log.read_text()
        assert path_of(done.stdout.strip()).is_relative_to(place.home / "certificates")
        assert path_of(done.stdout.strip()).read_bytes().startswith(b"%PDF-")
        worker.terminate()
        assert worker.wait(30) == 0
        assert "Traceback" not in log.read_text()
    finally:
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait(10)
