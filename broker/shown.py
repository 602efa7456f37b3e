"""What Celery shows of a job's arguments (`argsrepr`, `kwargsrepr`) is mostly the beginning of its body, in Python's words.

    argsrepr ('it', True)    kwargsrepr {'n': 7}    body [["it", true], {"n": 7}, {…}]

An envelope leaves it out then and says where in the body it is: up to 2 kB less of a job that PostgreSQL writes twice, into the
table and into its log. Finding or putting it back takes 1 to 5 µs; making it anew, as Celery's saferepr() does, 10 to 40.
"""

from __future__ import annotations

from typing import Any
from zlib import crc32

__all__ = ["put_back_shown", "shown_by"]

#: Celery shows 1,024 characters and a few more of the arguments, and as many of the keyword arguments. Of a text that is not
#: nearly as long it has cut off nothing, so somebody else has made it, mostly to hide something: that stays in the headers.
_CUT, _MOST = 1000, 1100
_BEGIN, _BETWEEN = "[[", "], {"
#: In the last part of a body that neither links nor chains follow.
_NO_KWARGS, _TAIL = '], {}, {"', 100
_ENDS = [")", "}"]
_WHOLE = {")", ",)", "}"}
_UNKNOWN = "(...)", "{...}"


def shown_by(body: str | None, argsrepr: object, kwargsrepr: object) -> list[Any] | None:
    """Where the body shows them: how many characters of the arguments and of the keyword arguments, a checksum of all up to
    there, and the two endings if they are not `)` and `}`. None when the body does not show exactly these.
    """
    if body is None or not (isinstance(argsrepr, str) and isinstance(kwargsrepr, str)):
        return None
    said = _in_pythons_words(body[:2 * _MOST])
    if (args := _beginning(argsrepr, said, len(_BEGIN), "]")) is None:
        return None
    if argsrepr[args + 1:] in _WHOLE:
        kwargs = _beginning(kwargsrepr, said, len(_BEGIN) + args + len(_BETWEEN), "}")
    else:  # where keyword arguments begin is not known, but that there are none
        kwargs = 0 if kwargsrepr == "{}" and _NO_KWARGS in body[-_TAIL:] else None
    if kwargs is None:
        return None
    ends = [argsrepr[args + 1:], kwargsrepr[kwargs + 1:]]
    place = [args, kwargs, _checksum(_part(body, args, kwargs)), *([] if ends == _ENDS else ends)]
    return place if put_back_shown(place, body) == (argsrepr, kwargsrepr) else None


def put_back_shown(place: Any, body: str | None) -> tuple[str, str]:
    """(argsrepr, kwargsrepr) for what shown_by() found; dots when somebody has edited the body there: what the old text hid might
    be in its place now.

    Raises ValueError when `place` is nothing that shown_by() returns.
    """
    try:
        args, kwargs, checksum, *ends = place
        args_end, kwargs_end = ends or _ENDS
        right = (type(args) is type(kwargs) is type(checksum) is int and 0 <= args <= _MOST and 0 <= kwargs <= _MOST
                 and type(args_end) is type(kwargs_end) is str)
    except (TypeError, ValueError):
        right = False
    if not right:
        raise ValueError(f"shown in the envelope has to be three numbers and two texts or none, not {place!r:.100}")
    part = _part(body or "", args, kwargs)
    if _checksum(part) != checksum:
        return _UNKNOWN
    said, between = _in_pythons_words(part), len(_BEGIN) + args
    begin = between + len(_BETWEEN)
    return f"({said[len(_BEGIN):between]}{args_end}", f"{{{said[begin:begin + kwargs]}{kwargs_end}"


def _beginning(shown: str, said: str, begin: int, bracket: str) -> int | None:
    """How much of what is shown stands there in the body, without its first bracket and its end. None for what Celery does not
    show by itself: less than there is, or more than it would.
    """
    if len(shown) > _MOST:
        return None
    for end in (len(shown) - 1, len(shown) - 2):
        if end > 0 and shown[end:] in _WHOLE and said.startswith(shown[1:end] + bracket, begin):
            return end - 1
    if len(shown) > _CUT and (dots := shown.rfind("...")) > 0:
        end = len(shown[:dots].rstrip(", "))
        if end > 0 and said.startswith(shown[1:end], begin):
            return end - 1
    return None


def _part(body: str, args: int, kwargs: int) -> str:
    """The body up to the end of the keyword arguments that it shows, and the bracket there, or what else follows."""
    return body[:len(_BEGIN) + args + len(_BETWEEN) + kwargs + 1]


def _in_pythons_words(part: str) -> str:
    # Words of the same length. In a text they are changed too, which shown_by() sees.
    return part.replace('"', "'").replace("null", "None").replace("true", "True").replace("false", "False")


def _checksum(part: str) -> int:
    return crc32(part.encode("utf-8", "surrogatepass"))
