"""How often, and by whom: token buckets in bounded memory."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.requests import Request

__all__ = ["Limiter", "client_of"]


class Limiter:
    """So many calls a minute for each key, all of a minute's at once at most.

    Memory is bounded: of more than `keys` keys the one that was quiet for longest is forgotten, which gives it a full bucket
    again. Not safe for threads: the event loop uses it.
    """

    def __init__(self, per_minute: float, keys: int = 10_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._keys, self._clock = per_minute / 60, per_minute, keys, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> int:
        """0 when this call is granted, else the seconds until the next one will be."""
        left, now = self._left(key)
        self._buckets[key] = (left - 1 if left >= 1 else left, now)
        self._buckets.move_to_end(key)
        while len(self._buckets) > self._keys:
            self._buckets.popitem(last=False)
        return self._seconds(left)

    def wait(self, key: str) -> int:
        """What take() would return, taking nothing."""
        return self._seconds(self._left(key)[0])

    def _left(self, key: str) -> tuple[float, float]:
        now = self._clock()
        left, before = self._buckets.get(key, (self._burst, now))
        return min(self._burst, left + (now - before) * self._rate), now

    def _seconds(self, left: float) -> int:
        return 0 if left >= 1 else max(1, math.ceil((1 - left) / self._rate))

    def __len__(self) -> int:
        return len(self._buckets)


def client_of(request: Request) -> str:
    """Whom a limit counts: the address; of IPv6 the /64, which one subscriber has all of."""
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host or "local"  # a socket of this machine
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
