"""What Celery shows of arguments comes back as it was, and nothing that somebody has hidden."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery.utils.saferepr import saferepr
from hypothesis import example, given
from hypothesis import strategies as st
from kombu.utils.json import dumps

from celery_jobqueue.broker.shown import put_back_shown, shown_by

_EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
_SIMPLE = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.sampled_from(
    ["null", "x" * 1100, "it's", 'say "x"', "back\\slash", "...", "')", '"}', "], {", "é"])
_VALUES = st.recursive(_SIMPLE, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))
_ARGS = st.lists(_VALUES, max_size=3).map(tuple)
_KWARGS = st.dictionaries(st.text(), _VALUES, max_size=3)


def body_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    return str(dumps((args, kwargs, _EMBED)))


@given(args=_ARGS, kwargs=_KWARGS, shown=st.none() | st.tuples(st.text(), st.text()))
@example(args=("a", "secret"), kwargs={}, shown=("('a')", "{}"))
@example(args=("secret",), kwargs={"s": "secret"}, shown=("('...')", "{...}"))
@example(args=("x" * 1500,), kwargs={"s": "secret"}, shown=("('" + "x" * 1020 + "...',)", "{}"))
@example(args=([{"": []}],), kwargs={}, shown=None)
@example(args=(), kwargs={}, shown=(" " * 1020 + "...", "{}"))
@example(args=("x",), kwargs={}, shown=("('x',)", ", " * 510 + "..."))
@example(args=("x",), kwargs={}, shown=("('x',)", "." * 1050))
def test_what_is_found_is_what_was_shown(args: tuple[Any, ...], kwargs: dict[str, Any], shown: tuple[str, str] | None) -> None:
    argsrepr, kwargsrepr = shown or (saferepr(args, 1024), saferepr(kwargs, 1024))
    place = shown_by(body_of(args, kwargs), argsrepr, kwargsrepr)
    if place is None:
        whole = (argsrepr, kwargsrepr) == (repr(args), repr(kwargs))  # Celery shows dots for what is too deep
        assert shown is not None or not (whole and plain(args, kwargs)), "what is simple is found"
    else:
        assert put_back_shown(json.loads(json.dumps(place)), body_of(args, kwargs)) == (argsrepr, kwargsrepr)


def plain(*values: object) -> bool:
    """Whether JSON and Python write it alike, in other quotes."""
    text = repr(values)
    return not set(text) & set("\\\"") and text.isascii() and "null" not in text and "inf" not in text and len(text) < 1000


@pytest.mark.parametrize(("args", "kwargs", "place"), [
    ((), {}, [0, 0]),
    (("it", True, None), {"n": 7}, [16, 6]),
    ((1,), {}, [1, 0, ",)", "}"]),
    ((), {"text": "x" * 1500}, [0, 1024, ")", "...'}"]),
    (("x" * 1500,), {}, [1024, 0, "...',)", "}"]),
    ((), {"numbers": [1] * 500}, [0, 1021, ")", ", , ...]}"]),
])
def test_usual_arguments_are_found(args: tuple[Any, ...], kwargs: dict[str, Any], place: list[Any]) -> None:
    found = shown_by(body_of(args, kwargs), saferepr(args, 1024), saferepr(kwargs, 1024))
    assert found is not None
    assert [*found[:2], *found[3:]] == place


@pytest.mark.parametrize("shown", [
    ("()", "{'a': 'it'}"), ("('secret', ...)", "{'a': 'it'}"), ("('secret', 'other')", "{'a': '***'}"),
    ("('***',)", "{'a': 'it'}"), ("('secret',)", "{}"), ("()", "{}"), ("('secret')", "{}"), ("('secret', 'other')", "{}"),
    ("", ""), ("<hidden>", "<hidden>")])
def test_what_somebody_hides_stays_in_the_headers(shown: tuple[str, str]) -> None:
    assert shown_by(body_of(("secret", "other"), {"a": "it"}), *shown) is None


def test_what_somebody_hides_behind_a_long_argument_stays_in_the_headers() -> None:
    args, kwargs = ("x" * 1500,), {"password": "secret"}
    assert shown_by(body_of(args, kwargs), saferepr(args, 1024), "{}") is None


@pytest.mark.parametrize("most", [990, 1050, 1099, 1100, 1101, 1500, 4096])
def test_texts_of_any_length_can_be_shown(most: int) -> None:
    for args, kwargs in (("x" * most,), {}), ((), {"a": "x" * most}), (("x" * (most // 2),), {"a": "x" * (most // 2)}):
        for shown in (repr(args), repr(kwargs)), (saferepr(args, most), saferepr(kwargs, most)):
            place = shown_by(body_of(args, kwargs), *shown)
            assert place is None or put_back_shown(place, body_of(args, kwargs)) == shown
            assert place is None or max(map(len, shown)) <= 1100, "Celery would not have shown so much"


@pytest.mark.parametrize(("args", "kwargs", "edited"), [
    (("it",), {"n": 7}, (("at",), {"n": 7})),
    (("it",), {"n": 7}, (("longer than before",), {"n": 7})),
    (("it",), {"n": 7}, ((), {"n": 7})),
    (("it",), {"n": 7}, (("it",), {"n": 77})),
    (("x" * 1500,), {}, (("short",), {"secret": 1})),
    ((), {"text": "x" * 1500}, ((), {"text": "short", "secret": 1}))])
def test_arguments_that_were_edited_are_not_shown_in_pieces(
        args: tuple[Any, ...], kwargs: dict[str, Any], edited: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    place = shown_by(body_of(args, kwargs), saferepr(args, 1024), saferepr(kwargs, 1024))
    assert place is not None
    assert put_back_shown(place, body_of(*edited)) == ("(...)", "{...}")
    assert put_back_shown(place, None) == ("(...)", "{...}")


@pytest.mark.parametrize("place", [
    0, [], [1, 2], "x", "123", [1, 2, 3, 4], [1, 2, 3, 4, 5], [None, 1, 2], [[], {}, 0], [1.5, 0, 0], [-1, 0, 0], [10**9, 0, 0],
    [True, 0, 0], {"a": 1, "b": 2, "c": 3}])
def test_an_envelope_that_was_edited_names_what_is_wrong(place: object) -> None:
    with pytest.raises(ValueError, match="shown in the envelope has to be"):
        put_back_shown(place, body_of((), {}))
