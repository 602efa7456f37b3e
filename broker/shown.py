"""What Celery shows of a job's arguments (`argsrepr`, `kwargsrepr`) is mostly the beginning of its body, in Python's words.

    argsrepr ('it', True)    kwargsrepr {'n': 7}    body [["it", true], {"n": 7}, {…}]

An envelope leaves it out then and says how much of the body it is: up to 2 kB less of a job that PostgreSQL writes twice, into
the table and into its log. Finding or putting it back takes 1 to 3 µs; making it anew, as Celery's saferepr() does, 10 to 40.
"""

from __future__ import annotations

from typing import Any

__all__ = ["put_back_shown", "shown_by"]

#: Celery shows 1,024 characters and a few more of the arguments, and as many of the keyword arguments.
_MOST = 2 * 1100
_BEGIN, _BETWEEN = "[[", "], {"
_ENDS = (")", "}")
#: How everything ends that is shown whole; what is cut off ends with dots before that.
_WHOLE = {")", ",)", "}"}
_UNKNOWN = "(...)", "{...}"


def shown_by(body: str | None, argsrepr: object, kwargsrepr: object) -> list[Any] | None:
    """How many characters of the body show the arguments and how many the keyword arguments, and the two endings if they are
    not `)` and `}`. None when the body does not show exactly these.
    """
    if body is None or not (isinstance(argsrepr, str) and isinstance(kwargsrepr, str)):
        return None
    said = _in_pythons_words(body, _MOST)
    args = _beginning(argsrepr, said, len(_BEGIN))
    kwargs = _beginning(kwargsrepr, said, len(_BEGIN) + args + len(_BETWEEN))
    ends = argsrepr[args + 1:], kwargsrepr[kwargs + 1:]
    lengths = [args, kwargs] if ends == _ENDS else [args, kwargs, *ends]
    return lengths if put_back_shown(lengths, body) == (argsrepr, kwargsrepr) else None


def put_back_shown(lengths: Any, body: str | None) -> tuple[str, str]:
    """(argsrepr, kwargsrepr) for what shown_by() found; with dots for all of it when the body is another one now.

    Raises ValueError when `lengths` is nothing that shown_by() returns.
    """
    try:
        args, kwargs, *ends = lengths
        args_end, kwargs_end = map(str, ends or _ENDS)
        between = len(_BEGIN) + abs(int(args))
        begin = between + len(_BETWEEN)
        end = begin + abs(int(kwargs))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"shown in the envelope has to be two numbers and two texts, not {lengths!r:.100}") from error
    said = _in_pythons_words(body or "", end + 1)
    # Behind arguments that are cut off, nobody knows where the others begin: shown_by() finds them only if they are none.
    if args_end in _WHOLE and (said[between:begin] != _BETWEEN or (kwargs_end in _WHOLE and said[end:] != "}")):
        return _UNKNOWN
    return f"({said[len(_BEGIN):between]}{args_end}", f"{{{said[begin:end]}{kwargs_end}"


def _beginning(shown: str, said: str, begin: int) -> int:
    """How much of what is shown stands there in the body, without its first bracket and its end."""
    for end in (len(shown) - 1, len(shown) - 2, len(shown[:shown.rfind("...")].rstrip(", "))):
        if end > 0 and said.startswith(shown[1:end], begin):
            return end - 1
    return 0


def _in_pythons_words(body: str, most: int) -> str:
    # Words of the same length. In a text they are changed too, which shown_by() sees.
    return body[:most].replace('"', "'").replace("null", "None").replace("true", "True").replace("false", "False")
