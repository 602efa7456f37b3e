"""Certificates by e-mail, through a real worker and a real SMTP server; and their pictures."""

from __future__ import annotations

import hashlib
import io
import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import psycopg
import pytest
import zxingcpp
from celery import Celery, chain
from celery.result import AsyncResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from PIL import Image

from celery_jobqueue.db.errors import ConfigurationError, JobQueueError
from tasks.certificates.errors import InvalidRecipient
from tasks.certificates.mail import Mailbox, MailError, MailRefused, check_email, letter
from tests.support.app import make_app
from tests.support.bulk import bulk, documents, write_attendees
from tests.support.certificates import classic
from tests.support.database import fresh_database, one, rows
from tests.support.issuing import USER, add_event, certificates_of, path_of
from tests.support.smtp import PASSWORD, PostOffice, post_office
from tests.support.waiting import wait_until
from tests.support.workers import worker

FROM = "Zoë's Academy <certificates@example.org>"


@dataclass
class Office:
    """A database, a worker, and the server that its mails go to."""

    url: str
    folder: Path
    client: Celery
    post: PostOffice

    def ask(self, event: str, name: str, **more: Any) -> dict[str, Any]:
        """Issue a certificate."""
        result: dict[str, Any] = self.client.send_task("tasks.generate_certificate", kwargs={
            "event_id": event, "recipient_name": name, "user_id": USER, **more}).get(timeout=60)
        return result

    def mail(self, certificate: str, email: str, **options: Any) -> AsyncResult[Any]:
        """Send it."""
        return self.client.send_task("tasks.send_certificate", args=(certificate, email), **options)

    def jobs(self, task: str, certificate: str) -> list[dict[str, Any]]:
        """The jobs after this certificate."""
        return rows(self.url, "select * from job_queue where task_name = %s and payload like %s order by id",
                    (f"tasks.{task}", f"%{certificate}%"))


@pytest.fixture(scope="module")
def running(server: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """One for all tests of this file."""
    place = tmp_path_factory.mktemp("office")
    with fresh_database(server, template) as url, post_office() as post:
        client = make_app(url)
        env = {"STORAGE_URL": (place / "files").as_uri(), "SMTP_URL": post.url, "MAIL_FROM": FROM,
               "VERIFY_URL": "https://example.org/verify/{serial}"}
        with worker(url, place, "tasks", "-c", "2", **env):
            yield Office(url, place / "files", client, post)
        client.backend.result_consumer.stop()
        client.close()


@pytest.fixture
def office(running: Office) -> Office:
    """It, with nothing in the post."""
    running.post.taken.clear()
    running.post.answers.clear()
    running.post.recipient_answer = None
    return running


def test_a_certificate_is_sent_to_its_recipient(office: Office) -> None:
    event = add_event(office.url, name="Warteschlangen\nfür Anfänger")
    issued = office.ask(event, "Zoë Ångström", email="zoe@Bücher.example")
    [message] = wait_until(lambda: office.post.taken, "the mail has come")
    assert message["Subject"] == "Your certificate: Warteschlangen für Anfänger"
    assert (message["From"], message["To"]) == (FROM, "Zoë Ångström <zoe@xn--bcher-kva.example>")
    assert message["Auto-Submitted"] == "auto-generated"
    body = message.get_body()
    assert body is not None
    text = body.get_content()
    assert text.startswith("Dear Zoë Ångström,")
    assert f"https://example.org/verify/{issued['serial']}" in text
    [attachment] = message.iter_attachments()
    [row] = certificates_of(office.url, event)
    assert hashlib.sha256(attachment.get_content()).hexdigest() == row["sha256"]
    assert attachment.get_content_type() == "application/pdf"
    assert attachment.get_filename() == f"certificate-{issued['serial']}.pdf"

    def recorded() -> Any:
        return one(office.url, "select sent_at from certificate_mails where certificate_id = %s", (issued["id"],))

    assert wait_until(recorded, "it is recorded")
    [job] = wait_until(lambda: [job for job in office.jobs("send_certificate", issued["id"]) if job["status"] == "completed"],
                       "the job is completed")
    assert (job["user_id"], job["priority"], job["attempts"]) == (USER, 8, 1)


def test_a_file_goes_to_an_address_once(office: Office) -> None:
    event = add_event(office.url)
    issued = office.ask(event, "Ada", recipient_key="ada")
    answers = [office.mail(issued["id"], "ada@example.org").get(timeout=30) for _ in range(2)]
    assert [answer["sent"] for answer in answers] == [True, False]
    assert [message["Message-ID"] for message in office.post.taken] == [answers[0]["message_id"]]
    # Many at once: one of them sends.
    many = [office.mail(issued["id"], "second@example.org") for _ in range(8)]
    assert sorted(result.get(timeout=60)["sent"] for result in many) == [False] * 7 + [True]
    assert len(office.post.taken) == 2
    # A corrected certificate is another file.
    office.ask(event, "Ada Lovelace", recipient_key="ada")
    assert office.mail(issued["id"], "ada@example.org").get(timeout=30)["sent"]
    assert len({message["Message-ID"] for message in office.post.taken}) == 3


def test_what_may_work_later_is_tried_again(office: Office) -> None:
    issued = office.ask(add_event(office.url), "Ada")
    office.post.answers = ["451 4.3.0 too busy"]
    assert office.mail(issued["id"], "ada@example.org").get(timeout=60)["sent"]
    [job] = office.jobs("send_certificate", issued["id"])
    assert job["attempts"] == 2
    assert "refuses the message (451 4.3.0 too busy)" in job["errors"][0]["error"]
    assert len(office.post.taken) == 1


@pytest.mark.parametrize(("set_up", "message"), [
    ({"recipient_answer": "550 5.1.1 no such user"}, r"refuses ada@example\.org \(550 5\.1\.1 no such user\)"),
    ({"answers": ["554 5.7.1 spam"]}, r"refuses the message \(554 5\.7\.1 spam\)"),
])
def test_what_never_will_work_fails_at_once(set_up: dict[str, Any], message: str, office: Office) -> None:
    issued = office.ask(add_event(office.url), "Ada")
    for name, value in set_up.items():
        setattr(office.post, name, value)
    with pytest.raises(JobQueueError, match=message):
        office.mail(issued["id"], "ada@example.org").get(timeout=30)
    [job] = office.jobs("send_certificate", issued["id"])
    assert (job["status"], job["attempts"]) == ("failed", 1)
    assert office.post.taken == []


def test_a_revoked_certificate_is_not_sent(office: Office) -> None:
    issued = office.ask(add_event(office.url), "Ada")
    with psycopg.connect(office.url) as conn:
        conn.execute("select revoke_certificate(%s, 'error')", (issued["serial"],))
    for certificate, message in ((issued["id"], "is revoked: it is not sent"), ("6f1d8c2e-5b7a-4c39-9d51-0a4be1c7f203",
                                 "there is no certificate"), ("x", "'x' is not the id of a certificate")):
        with pytest.raises(JobQueueError, match=message):
            office.mail(certificate, "ada@example.org").get(timeout=30)
    assert office.post.taken == []


def test_in_a_chain(office: Office) -> None:
    event = add_event(office.url)
    generate = office.client.signature("tasks.generate_certificate", kwargs={
        "event_id": event, "recipient_name": "Ada", "user_id": USER})
    send = office.client.signature("tasks.send_certificate", kwargs={"email": "ada@example.org"})
    assert chain(generate, send).apply_async().get(timeout=30)["sent"]
    assert [message["To"] for message in office.post.taken] == ["Ada <ada@example.org>"]


def test_a_batch_is_sent(office: Office, tmp_path: Path) -> None:
    event = add_event(office.url)
    file = write_attendees(tmp_path / "people.csv", *(f"Ada {number},p{number}@example.org" for number in range(5)), "Grace,")
    done = bulk(office.url, office.folder, "issue", str(file), "--event", event, "--user", USER, "--yes", "--skip-bad",
                "--send-email", "--preview", "webp", "--json")
    said = documents(done)
    assert said["plan"]["plan"]["bad"] == [[7, "Grace", "email is empty, and certificates shall be sent"]]
    assert said["summary"]["summary"]["issued"] == 5
    wait_until(lambda: len(office.post.taken) == 5, "all mails have come")
    assert sorted(str(message["To"]) for message in office.post.taken) == [
        f"Ada {number} <p{number}@example.org>" for number in range(5)]
    wait_until(lambda: len(list(office.folder.glob(f"events/{event}/*.webp"))) == 5, "all pictures are there")


@pytest.mark.parametrize("kind", ["webp", "png"])
def test_a_picture_beside_the_file(kind: str, office: Office) -> None:
    event = add_event(office.url, classic(verify_url="https://example.org/{serial}"))
    issued = office.ask(event, "Zoë", preview=kind)
    path = path_of(issued["url"]).with_suffix(f".{kind}")
    wait_until(path.exists, "the picture is there")
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        assert (image.format, image.width, round(image.width / image.height, 2)) == (kind.upper(), 1200, 1.41)
        [code] = zxingcpp.read_barcodes(image.resize((2400, 1697)))
    assert code.text == f"https://example.org/{issued['serial']}"
    first = path.read_bytes()
    again = office.client.send_task("tasks.preview_certificate", args=(issued, kind)).get(timeout=30)
    assert again == {"storage_key": issued["storage_key"].replace(".pdf", f".{kind}"), "url": path.as_uri()}
    assert path.read_bytes() == first
    for arguments, message in (((issued, "gif"), "a preview cannot be 'gif': there are webp, png"),
                               ((issued, kind, 5000), "width=5000 must be a whole number of pixels from 16 to 4000")):
        with pytest.raises(JobQueueError, match=message):
            office.client.send_task("tasks.preview_certificate", args=arguments).get(timeout=30)


# -- the mailbox itself ------------------------------------------------------------------------------------------------------


def _message(**changes: Any) -> Any:
    given = {"sender": FROM, "name": "Zoë", "email": "zoe@example.org", "event": "A Day", "serial": "A-B", "pdf": b"%PDF-",
             "identity": "<1@example.org>"}
    return letter(**{**given, **changes})


def _mailbox(monkeypatch: pytest.MonkeyPatch, url: str) -> Mailbox:
    monkeypatch.setenv("SMTP_URL", url)
    monkeypatch.setenv("MAIL_FROM", FROM)
    return Mailbox.from_environment()


def _certificate(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's context, and the file with which clients trust it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
            .sign(key, hashes.SHA256()))
    file, private = folder / "server.pem", folder / "server.key"
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                          serialization.NoEncryption()))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file, private)
    return context, file


def test_a_password_travels_encrypted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, trusted = _certificate(tmp_path)
    login = "postmaster:p%40ss%3Aword%2F1@"
    with post_office(context, login=True) as post:
        address = post.url.replace("//", f"//{login}")
        with pytest.raises(MailError, match="certificate verify failed"):
            _mailbox(monkeypatch, address).send(_message())
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        _mailbox(monkeypatch, address).send(_message())
        assert len(post.taken) == 1
        with pytest.raises(MailError, match=r"refuses user 'postmaster' \(535 .*\): check SMTP_URL") as caught:
            _mailbox(monkeypatch, address.replace("word", "sword")).send(_message())
        assert PASSWORD[:4] not in str(caught.value)
    with post_office() as plain, pytest.raises((MailError, MailRefused), match="STARTTLS"):
        _mailbox(monkeypatch, plain.url.replace("//", f"//{login}")).send(_message())


def test_a_server_that_is_away_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with post_office() as post:
        url = post.url
    with pytest.raises(MailError, match="refused"):
        _mailbox(monkeypatch, url).send(_message())


@pytest.mark.parametrize(("name", "value", "message"), [
    ("SMTP_URL", "", "SMTP_URL: write smtp://"), ("SMTP_URL", "http://host", "SMTP_URL: write smtp://"),
    ("SMTP_URL", "smtp://host?tls=1", "SMTP_URL: write smtp://"), ("SMTP_URL", "smtp://u:secret@host:x", "SMTP_URL: "),
    ("SMTP_URL", "smtp://host?starttls=maybe", "starttls='maybe'"), ("MAIL_FROM", "", "MAIL_FROM '': write Academy"),
    ("MAIL_FROM", "Academy", "MAIL_FROM 'Academy': write"),
])
def test_a_setting_that_cannot_be_used_says_how_to_mend_it(name: str, value: str, message: str,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMTP_URL", "smtp://host")
    monkeypatch.setenv("MAIL_FROM", FROM)
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        Mailbox.from_environment()
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("address", [
    "", "ada", "ada@", "@example.org", "ada@example", "a b@example.org", "ada@example.org, bob@example.org", "a@b@example.org",
    "ada@example.org\nBcc: bob@example.org", "<ada@example.org>", "a..b@example.org", ".a@example.org", "ada@-example.org",
    "x" * 65 + "@example.org", "ada@" + "x" * 64 + ".org", "ada@exa mple.org", 'a"b@example.org', None, 7])
def test_what_is_no_address(address: object) -> None:
    with pytest.raises(InvalidRecipient, match=r"^email "):
        check_email(address)


def test_addresses_in_their_normal_form() -> None:
    assert check_email(" Ada.Lovelace+x@Example.ORG ") == "Ada.Lovelace+x@example.org"
    assert check_email("zoë@bücher.example") == "zoë@xn--bcher-kva.example"


def test_an_address_that_needs_smtputf8(monkeypatch: pytest.MonkeyPatch) -> None:
    with post_office() as post:
        _mailbox(monkeypatch, post.url).send(_message(email="zoë@example.org"))
        assert [message["To"] for message in post.taken] == ["Zoë <zoë@example.org>"]
    assert os.environ["SMTP_URL"] == post.url
