"""What may stand on a certificate, and for whom it is."""

from __future__ import annotations

import unicodedata
import uuid

import pytest

from celery_jobqueue.db.errors import FinalError, InvalidJob
from tasks.certificates.errors import InvalidRecipient, InvalidUser, UnknownEvent
from tasks.certificates.issue import check_event_id, check_key, check_name, check_user
from tests.support.certificates import ATTENDEES


@pytest.mark.parametrize("name", [*ATTENDEES, "X", "李小龍", "B2", "x" * 120, "میخ\u200cساز", "क्\u200dष"])
def test_names_stay_as_they_are(name: str) -> None:
    assert check_name(name) == name


def test_a_name_is_brought_into_its_normal_form() -> None:
    assert check_name("  Zoe\u0308\u00a0 \n\tA\u030angstro\u0308m ") == "Zoë Ångström"
    decomposed = unicodedata.normalize("NFD", "ễ" * 120)
    assert len(decomposed) == 360
    assert check_name(decomposed) == "ễ" * 120


@pytest.mark.parametrize(("name", "message"), [
    (None, "must be text, not NoneType"), (7, "must be text, not int"), (b"Ada", "must be text, not bytes"),
    (float("nan"), "must be text, not float"), (["Ada"], "must be text, not list"),
    ("", "is empty"), (" \t\n\u00a0\u3000", "is empty"), ("\u200d", "holds no letter"), ("\u0301", "holds no letter"),
    ("!?", "holds no letter"), ("x" * 121, "has 121 characters: at most 120"), ("x" * 10**6, "has 1000000 characters"),
    ("A\0da", r"holds U\+0000"), ("A\x1bda", r"holds U\+001B"), ("\ud800Ada", r"holds U\+D800"), ("Ada\ue000", r"holds U\+E000"),
    ("Ada\u202eevoL", r"holds U\+202E"), ("Ada\u200b", r"holds U\+200B"), ("\ufeffAda", r"holds U\+FEFF"),
    ("Ada\U0010ffff", r"holds U\+10FFFF"),
])
def test_what_is_no_name_is_refused(name: object, message: str) -> None:
    with pytest.raises(InvalidRecipient, match=rf"^recipient_name .*{message}") as caught:
        check_name(name)
    assert isinstance(caught.value, FinalError)
    assert isinstance(caught.value, InvalidJob)


def test_keys_are_one_however_they_are_written() -> None:
    assert check_key(" Zoe\u0308@Example.ORG ") == check_key("zoë@example.org") == "zoë@example.org"
    assert check_key(None) is check_key("") is check_key("  \t") is None


@pytest.mark.parametrize(("key", "message"), [
    (7, "must be text, not int"), (float("nan"), "must be text"), (b"x", "must be text, not bytes"),
    ("x" * 201, "has 201 characters: at most 200"), ("a\0b", r"U\+0000"), ("a\ud800", r"U\+D800"),
])
def test_what_is_no_key_is_refused(key: object, message: str) -> None:
    with pytest.raises(InvalidRecipient, match=rf"^recipient_key .*{message}"):
        check_key(key)


@pytest.mark.parametrize(("user", "message"), [
    (None, "is empty"), ("", "is empty"), ("  ", "is empty"), (7, "must be text, not int"), ("x" * 201, "has 201 characters"),
    ("a\0", r"U\+0000"), ("a\udfff", r"U\+DFFF"),
])
def test_what_is_no_user_is_refused(user: object, message: str) -> None:
    with pytest.raises(InvalidUser, match=rf"^user_id .*{message}"):
        check_user(user)


def test_a_user_id_is_never_changed() -> None:
    assert check_user("User 1 ") == "User 1 "


@pytest.mark.parametrize("event_id", [None, "", 42, b"x", float("nan"), "../../etc/passwd", "\0", "\ud800", "x" * 10**6])
def test_an_event_id_is_a_uuid(event_id: object) -> None:
    with pytest.raises(UnknownEvent, match=r"^event_id .* \(a UUID\)$") as caught:
        check_event_id(event_id)
    assert len(str(caught.value)) < 400
    some = uuid.uuid4()
    assert check_event_id(str(some).upper()) == check_event_id(some) == some
