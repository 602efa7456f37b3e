"""A proxy before PostgreSQL that cuts a connection between the server's commit and the client's knowledge of it."""

from __future__ import annotations

import selectors
import socket
import threading
from types import TracebackType
from urllib.parse import urlsplit, urlunsplit


class CuttingProxy:
    """Passes everything on, until it is told what to look for."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._server = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = urlunsplit(parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{port}"))
        self.swallowed = 0
        self._looked_for: tuple[bytes, ...] = ()
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> CuttingProxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def swallow_reply_to(self, *words: bytes) -> None:
        """The next request that holds one of the words is passed on; its reply is not, and its connection ends. Once.

        Statements are prepared under names: the text travels with the first use, the name with every other.
        """
        self._looked_for = words

    def stop(self) -> None:
        """Nobody listens any more, and every connection ends."""
        for end in (self._listener, *self._sockets):
            with _quietly():
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)  # type: ignore[arg-type]
            except OSError:
                return
            self._sockets += [client, server]
            threading.Thread(target=self._pass_on, args=(client, server), daemon=True).start()

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        with selectors.DefaultSelector() as selector, _quietly():
            selector.register(client, selectors.EVENT_READ)
            selector.register(server, selectors.EVENT_READ)
            swallow = False
            while True:
                for key, _ in selector.select():
                    data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    if not data or (key.fileobj is server and swallow):
                        self.swallowed += swallow
                        for end in (client, server):
                            end.shutdown(socket.SHUT_RDWR)
                        return
                    if key.fileobj is client:
                        swallow = swallow or self._wanted(data)
                        server.sendall(data)
                    else:
                        client.sendall(data)

    def _wanted(self, data: bytes) -> bool:
        with self._lock:
            if not any(word in data for word in self._looked_for):
                return False
            self._looked_for = ()
            return True


class _quietly:  # noqa: N801
    """Sockets end when they end."""

    def __enter__(self) -> None:
        """Nothing."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        return kind is not None and issubclass(kind, (OSError, ValueError))
