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
def test_what_is_found_is_what_was_shown(args: tuple[Any, ...], kwargs: dict[str, Any], shown: tuple[str, str] | None) -> None:
    shown = shown or (saferepr(args, 1024), saferepr(kwargs, 1024))
    lengths = shown_by(body_of(args, kwargs), *shown)
    assert lengths is None or put_back_shown(json.loads(json.dumps(lengths)), body_of(args, kwargs)) == shown


@pytest.mark.parametrize(("args", "kwargs", "lengths"), [
    ((), {}, [0, 0]),
    (("it", True, None), {"n": 7}, [16, 6]),
    ((1,), {}, [1, 0, ",)", "}"]),
    ((), {"text": "x" * 1500}, [0, 1024, ")", "...'}"]),
    (("x" * 1500,), {}, [1024, 0, "...',)", "}"]),
    ((), {"numbers": [1] * 500}, [0, 1021, ")", ", , ...]}"]),
])
def test_usual_arguments_are_found(args: tuple[Any, ...], kwargs: dict[str, Any], lengths: list[Any]) -> None:
    assert shown_by(body_of(args, kwargs), saferepr(args, 1024), saferepr(kwargs, 1024)) == lengths


@pytest.mark.parametrize("shown", [("()", "{'a': 'it'}"), ("('secret')", "{'a': 'it'}"), ("('secret', 'other')", "{}")])
def test_what_somebody_hides_is_not_in_an_envelope_as_a_part_of_the_body(shown: tuple[str, str]) -> None:
    assert shown_by(body_of(("secret", "other"), {"a": "it"}), *shown) is None


@pytest.mark.parametrize("args", [("longer than before",), ("x",), ("it", 2), ()])
def test_arguments_that_were_edited_are_not_shown_in_pieces(args: tuple[Any, ...]) -> None:
    lengths = shown_by(body_of(("it",), {"n": 7}), "('it',)", "{'n': 7}")
    assert put_back_shown(lengths, body_of(args, {"n": 7})) == ("(...)", "{...}")


def test_arguments_of_the_same_length_are_shown_as_they_are_now() -> None:
    lengths = shown_by(body_of(("it",), {"n": 7}), "('it',)", "{'n': 7}")
    assert put_back_shown(lengths, body_of(("at",), {"n": 8})) == ("('at',)", "{'n': 8}")
    assert put_back_shown(lengths, None) == ("(...)", "{...}")


@pytest.mark.parametrize("lengths", [0, [], [1], "x", [1, 2, 3], [1, 2, 3, 4, 5], [None, 1], [[], {}], [float("inf"), 0]])
def test_an_envelope_that_was_edited_names_what_is_wrong(lengths: object) -> None:
    with pytest.raises(ValueError, match="shown in the envelope has to be"):
        put_back_shown(lengths, body_of((), {}))
