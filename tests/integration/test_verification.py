"""Verifying and revoking: what strangers may know, what they may not, and the ways to revoke."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import psycopg
import pytest
from click.testing import CliRunner
from dateutil.relativedelta import relativedelta
from sqlalchemy import Engine, create_engine

from celery_jobqueue.db.url import sqlalchemy_url
from tasks.certificates import __main__ as command
from tasks.certificates import issue
from tasks.certificates.errors import CertificateRevoked, InvalidExpiry, InvalidRevocation, UnknownCertificate
from tasks.certificates.issue import issue_certificate
from tasks.certificates.storage import storage_from_url
from tasks.certificates.verification import Verification, name_matches, plain_serial, reinstate, revoke, verify
from tests.support.certificates import one_part, text_of
from tests.support.database import fresh_database, one, rows
from tests.support.issuing import USER, add_event, certificates_of
from tests.support.programs import environment
from tests.support.web import Site, site
from tests.support.workers import ROOT

NAME, KEY = "Łukasz Gutiérrez", "lukasz@example.org"


@pytest.fixture(scope="module")
def url(server: str, template: str) -> Iterator[str]:
    with fresh_database(server, template) as url:
        yield url


@pytest.fixture(scope="module")
def engine(url: str) -> Iterator[Engine]:
    made = create_engine(sqlalchemy_url(url))
    yield made
    made.dispose()


@pytest.fixture(scope="module")
def web(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The pages, told to believe this machine about addresses: so each test is a client of its own."""
    with site(url, tmp_path_factory.mktemp("web"), WEB_TRUSTED_PROXIES="127.0.0.1") as running:
        yield running


@pytest.fixture
def event(url: str) -> str:
    return add_event(url, one_part(), name="A Day of Queues")


@pytest.fixture
def serial(engine: Engine, event: str, tmp_path: Path) -> str:
    """The serial of a certificate that was issued."""
    return issue_certificate(engine, event_id=event, recipient_name=NAME, user_id=USER, recipient_key=KEY,
                             storage=storage_from_url(tmp_path.as_uri())).serial


@pytest.fixture
def states(url: str, engine: Engine, event: str, tmp_path: Path) -> dict[str, str]:
    """A serial in each state."""
    found = {"unknown": "AAAA-BBBB-CCCC"}
    for state in ("valid", "revoked", "expired"):
        found[state] = issue_certificate(engine, event_id=event, recipient_name=NAME, user_id=USER,
                                         recipient_key=f"{state}-{KEY}", storage=storage_from_url(tmp_path.as_uri())).serial
    revoke(engine, found["revoked"], "replaced", "his name was misspelt")
    rows(url, "update certificates set expires_on = current_date - 2 where serial = %s", (found["expired"],))
    return found


_clients = iter(range(1, 65000))


def asked(web: Site, path: str, **options: Any) -> Any:
    """A request of a client that has not asked before."""
    number = next(_clients)
    return web.ask(path, X_Forwarded_For=f"198.51.{number >> 8}.{number & 255}", **options)


# -- what is said --------------------------------------------------------------------------------------------------------


def test_the_states(engine: Engine, states: dict[str, str]) -> None:
    assert {verify(engine, serial).state: state for state, serial in states.items()} == {state: state for state in states}
    revoked = verify(engine, states["revoked"])
    assert (revoked.reason, revoked.revoked_on is not None) == ("replaced", True)
    for nonsense in ("no serial at all", "\0' or 1=1", ""):
        assert verify(engine, nonsense) == verify(engine, states["unknown"])


def test_a_certificate_is_valid_through_its_last_day(url: str, engine: Engine, serial: str) -> None:
    rows(url, "update certificates set expires_on = '2027-03-31' where serial = %s", (serial,))
    assert verify(engine, serial, date(2027, 3, 31)).state == "valid"
    assert verify(engine, serial, date(2027, 4, 1)).state == "expired"
    revoke(engine, serial)
    assert verify(engine, serial, date(2027, 4, 1)).state == "revoked", "the graver one is said"


def test_certificates_expire_as_the_design_or_the_order_says(url: str, engine: Engine, tmp_path: Path) -> None:
    event = add_event(url, one_part(text="{recipient_name} until {expires_on}") | {"valid_for": "2 years"})
    storage = storage_from_url(tmp_path.as_uri())

    def issued(name: str, **more: Any) -> tuple[Verification, str]:
        made = issue_certificate(engine, event_id=event, recipient_name=name, user_id=USER, recipient_key=KEY, storage=storage,
                                 **more)
        return verify(engine, made.serial), text_of(storage.open(made.storage_key))

    first, sheet = issued("Ada")
    assert first.issued_on is not None
    last = first.issued_on + relativedelta(years=2)
    assert (first.state, first.expires_on) == ("valid", last)
    assert sheet == f"Ada until {last.day} {last:%B} {last.year}"
    assert issued("Ada Byron", expires_on="2099-12-31")[0].expires_on == date(2099, 12, 31)
    again, sheet = issued("Ada Lovelace")
    assert (again.expires_on, sheet) == (date(2099, 12, 31), "Ada Lovelace until 31 December 2099"), "what was asked for stands"
    before = certificates_of(url, event)
    with pytest.raises(InvalidExpiry, match="expires_on 2020-01-01 is before"):
        issued("Ada", expires_on="2020-01-01")
    assert certificates_of(url, event) == before


def test_every_answer_has_the_same_shape(web: Site, states: dict[str, str]) -> None:
    answers = {state: asked(web, f"/api/verify/{serial}") for state, serial in (states | {"malformed": "X"}).items()}
    assert {answer.status for answer in answers.values()} == {200}
    assert len({tuple(answer.json) for answer in answers.values()}) == 1
    assert answers["malformed"].text == answers["unknown"].text
    assert {name for name, value in answers["unknown"].json.items() if value} == {"state"}
    pages = {state: asked(web, f"/verify/{serial}") for state, serial in states.items()}
    said = {"valid": "is valid", "revoked": "was revoked", "expired": "has expired", "unknown": "no such certificate"}
    for state, page in pages.items():
        assert page.status == 200
        assert page.headers["cache-control"] == "no-store"
        assert "noindex" in page.headers["x-robots-tag"]
        assert said[state] in page.text
    assert "Another certificate replaces it." in pages["revoked"].text


def test_nothing_personal_is_said(web: Site, states: dict[str, str], event: str) -> None:
    for serial in states.values():
        for path in (f"/verify/{serial}", f"/api/verify/{serial}"):
            text = asked(web, path).text
            for private in ("Łukasz", "ukasz", "Guti", KEY, USER, event, "misspelt", "events/"):
                assert private not in text, path
    assert "Ł… G…" in asked(web, f"/verify/{states['valid']}").text


@pytest.mark.parametrize("typed", ["lower", "spaces", "bare", "dashes"])
def test_a_serial_may_be_typed_as_people_type(web: Site, serial: str, typed: str) -> None:
    given = {"lower": serial.lower(), "spaces": serial.replace("-", " "), "bare": serial.replace("-", ""),
             "dashes": serial.replace("-", "\u2013")}[typed]
    assert plain_serial(f" {given} ") == serial
    answer = asked(web, f"/verify?serial={quote(given)}")
    assert (answer.status, answer.headers["location"]) == (303, f"/verify/{serial}")


def test_a_name_is_compared_without_being_shown(web: Site, engine: Engine, serial: str) -> None:
    for name, right in ((NAME, True), (" łukasz   GUTIE\u0301RREZ", True), ("Łukasz", False), ("", False), ("Ł… G…", False)):
        assert name_matches(engine, serial, name) is right
        assert not name_matches(engine, "AAAA-BBBB-CCCC", name)
    form = {"method": "POST", "Content_Type": "application/x-www-form-urlencoded"}
    yes = asked(web, f"/verify/{serial}", data=urlencode({"name": NAME.upper()}).encode(), **form)
    assert "is the name on this certificate" in yes.text
    no = asked(web, f"/verify/{serial}", data=urlencode({"name": "<script>alert(1)</script>"}).encode(), **form)
    assert "is not the name on a certificate with this number" in no.text
    assert "<script>alert" not in no.text
    assert "Łukasz" not in no.text
    assert asked(web, f"/verify/{serial}", data=b"name=" + b"x" * 5000, **form).status == 413


def test_names_are_not_guessed_from_many_addresses(web: Site, serial: str) -> None:
    form: dict[str, Any] = {"method": "POST", "data": b"name=guess", "Content_Type": "application/x-www-form-urlencoded"}
    statuses = [asked(web, f"/verify/{serial}", **form).status for _ in range(32)]
    assert statuses == [200] * 30 + [429] * 2


def test_asking_is_limited_per_client(web: Site) -> None:
    def ask(client: str) -> Any:
        return web.ask("/verify/AAAA-BBBB-CCCC", X_Forwarded_For=client)

    answers = [ask("203.0.113.1") for _ in range(31)]
    assert [answer.status for answer in answers] == [200] * 30 + [429]
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert "Too many requests" in answers[-1].text
    assert ask("203.0.113.2").status == 200
    assert [ask(f"2001:db8::{n:x}").status for n in range(1, 32)] == [200] * 30 + [429], "one subscriber"


# -- serials -------------------------------------------------------------------------------------------------------------


def test_serials_cannot_be_worked_out(url: str, engine: Engine, tmp_path: Path) -> None:
    """Who knows event, name and address does not know the serial: another secret, another serial."""
    storage, serials = storage_from_url(tmp_path.as_uri()), set()
    event = add_event(url, one_part())
    for _ in range(3):
        rows(url, "delete from certificates where event_id = %s", (event,))
        rows(url, "update certificate_configs set serial_secret = gen_random_uuid() where event_id = %s", (event,))
        serials.add(issue_certificate(engine, event_id=event, recipient_name=NAME, user_id=USER, storage=storage).serial)
    assert len(serials) == 3
    # A lost secret does no harm to what was issued: who is issued again keeps the serial.
    again = issue_certificate(engine, event_id=event, recipient_name=NAME, user_id=USER, storage=storage).serial
    rows(url, "update certificate_configs set serial_secret = gen_random_uuid() where event_id = %s", (event,))
    assert issue_certificate(engine, event_id=event, recipient_name=NAME, user_id=USER, storage=storage).serial == again


def test_a_run_that_died_before_its_commit_finds_its_own_file(url: str, engine: Engine, tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    event, storage = add_event(url, one_part()), storage_from_url(tmp_path.as_uri())
    secret = one(url, "select serial_secret from certificate_configs where event_id = %s", (event,))
    first = issue_certificate(engine, event_id=event, recipient_name=NAME, user_id=USER, storage=storage)
    rows(url, "delete from certificates where event_id = %s", (event,))
    second = issue_certificate(engine, event_id=event, recipient_name=NAME, user_id=USER, storage=storage)
    assert first.storage_key == second.storage_key
    assert issue._serial(secret, next(row["event_id"] for row in certificates_of(url, event)), NAME.casefold()) == first.serial


# -- revoking ------------------------------------------------------------------------------------------------------------


def test_revoking_and_taking_it_back(url: str, engine: Engine, serial: str) -> None:
    assert revoke(engine, serial.lower(), "error", "wrong person")
    assert not revoke(engine, serial, "replaced")
    [row] = rows(url, "select * from certificates where serial = %s", (serial,))
    assert (row["revoke_reason"], row["revoke_note"]) == ("error", "wrong person"), "the first reason stays"
    assert verify(engine, serial).state == "revoked"
    assert reinstate(engine, serial)
    assert not reinstate(engine, serial)
    assert verify(engine, serial).state == "valid"
    [row] = rows(url, "select * from certificates where serial = %s", (serial,))
    assert (row["revoked_at"], row["revoke_reason"], row["revoke_note"]) == (None, None, None)


def test_what_cannot_be_revoked_is_said(engine: Engine, serial: str) -> None:
    with pytest.raises(UnknownCertificate, match="there is no certificate 'AAAA-BBBB-CCCC'"):
        revoke(engine, "AAAA-BBBB-CCCC")
    with pytest.raises(UnknownCertificate, match="there is no certificate 'nonsense'"):
        reinstate(engine, "nonsense")
    with pytest.raises(InvalidRevocation, match="reason 'because' is not known: use error, replaced or withdrawn"):
        revoke(engine, serial, "because")
    with pytest.raises(InvalidRevocation, match="note has 2001 characters: at most 2000"):
        revoke(engine, serial, "error", "n" * 2001)
    assert verify(engine, serial).state == "valid"


def test_a_reason_by_hand_is_one_of_the_three(url: str, serial: str) -> None:
    for change in ("revoked_at = now()", "revoke_reason = 'error'", "revoked_at = now(), revoke_reason = 'he cheated'"):
        with pytest.raises(psycopg.errors.CheckViolation):
            rows(url, f"update certificates set {change} where serial = %s", (serial,))


def test_a_revoked_certificate_is_not_issued_again(url: str, engine: Engine, event: str, serial: str, tmp_path: Path) -> None:
    def again() -> str:
        return issue_certificate(engine, event_id=event, recipient_name=NAME, user_id=USER, recipient_key=KEY,
                                 storage=storage_from_url(tmp_path.as_uri())).serial

    revoke(engine, serial)
    before = certificates_of(url, event)
    with pytest.raises(CertificateRevoked, match=rf"certificate {serial} of this recipient was revoked on .* reinstate it"):
        again()
    assert certificates_of(url, event) == before
    reinstate(engine, serial)
    assert again() == serial


def test_the_command(engine: Engine, serial: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "engine", lambda: engine)

    def run(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(command.main, arguments)
        assert done.exception is None or isinstance(done.exception, SystemExit)
        return done.exit_code, done.output

    code, said = run("verify", serial)
    assert (code, said.splitlines()[0]) == (0, f"{serial}  valid")
    assert run("revoke", serial, "--reason", "replaced", "--note", "a typing error") == (0, f"{serial} is revoked\n")
    assert run("revoke", serial) == (0, f"{serial} was revoked before; nothing changed\n")
    code, said = run("verify", serial)
    assert code == 1
    assert "reason     replaced" in said
    assert "typing error" not in said
    assert run("reinstate", serial) == (0, f"{serial} is valid again\n")
    assert run("revoke", "AAAA-BBBB-CCCC") == (1, "Error: there is no certificate 'AAAA-BBBB-CCCC'\n")
    assert run("revoke", serial, "--reason", "because")[0] == 2


def test_the_command_is_a_program(url: str, serial: str) -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-m", "tasks.certificates", "verify", serial], env=environment(url),
                          cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.splitlines()[0], done.stderr) == (0, f"{serial}  valid", "")
