"""What a browser gets for a link."""

from __future__ import annotations

import urllib.request
from urllib.error import HTTPError

import pytest

__all__ = ["fetched", "refused"]


def fetched(url: str) -> bytes:
    """The content."""
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310
        content: bytes = answer.read()
        return content


def refused(url: str) -> int:
    """The status with which it is refused; fails when it is not."""
    with pytest.raises(HTTPError) as caught:
        fetched(url)
    caught.value.close()
    return caught.value.code
