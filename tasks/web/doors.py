"""What a request has to pass: signing in, not being sent by another site, and the limits."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.requests import Request

from tasks.web.auth import User, user_of
from tasks.web.limits import Limiter, client_of
from tasks.web.options import WebOptions
from tasks.web.refusals import Refused

__all__ = ["Doors"]


class Doors:
    """Every method raises Refused for who may not pass."""

    def __init__(self, options: WebOptions) -> None:
        self._options = options
        self._orders = Limiter(options.orders_per_minute)
        self._failures = Limiter(options.failures_per_minute)
        self._verifications = Limiter(options.verifications_per_minute)
        self._names = Limiter(options.verifications_per_minute)

    async def user(self, request: Request) -> User:
        """Who is signed in."""
        guess = "authorization" in request.headers  # who shows no password has not guessed one
        if guess and (wait := self._failures.wait(client_of(request))):
            raise Refused(429, "too many wrong passwords: wait a moment", retry_after=wait)
        found = await user_of(self._options.authenticate, request)
        if found is not None:
            return found
        if guess:
            self._failures.take(client_of(request))
        raise Refused(401, "sign in first", sign_in=self._options.ask_for_password)

    def may_order(self, user: User) -> None:
        """One more order of this user's."""
        if wait := self._orders.take(user.id):
            raise Refused(429, f"too many orders: wait {wait} s", retry_after=wait)

    def may_verify(self, request: Request) -> None:
        """One more look at a certificate by this client."""
        if wait := self._verifications.take(client_of(request)):
            raise Refused(429, f"Too many certificates were verified from your address: wait {wait} s.", retry_after=wait)

    def may_compare(self, request: Request, serial: str) -> None:
        """One more name compared with this certificate's, by whomever: names are easier to guess than serials."""
        self.may_verify(request)
        if wait := self._names.take(serial):
            raise Refused(429, f"Too many names were compared with this certificate's: wait {wait} s.", retry_after=wait)

    def same_origin(self, request: Request) -> None:
        """Not sent by a page of another site in the name of who is signed in here."""
        site = request.headers.get("sec-fetch-site")
        origin = request.headers.get("origin")
        if site:
            own = site in ("same-origin", "none")
        else:  # an old browser, or no browser at all
            own = origin is None or urlsplit(origin).netloc == request.headers.get("host")
        if not own:
            raise Refused(403, "this request was sent by another site")
