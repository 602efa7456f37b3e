"""A network before PostgreSQL that fails: it loses one reply, every connection, or everything for a while."""

from __future__ import annotations

import selectors
import socket
import threading
from types import TracebackType
from urllib.parse import urlsplit, urlunsplit


class CuttingProxy:
    """Passes everything on, until it is told to fail."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._server = (parts.hostname, parts.port)
        self._port = 0
        self.swallowed = 0
        self._looked_for: tuple[bytes, ...] = ()
        self._lock = threading.Lock()
        self._whole = threading.Event()
        self._whole.set()
        self._cuts = 0
        self._stopped = False
        self._sockets: list[socket.socket] = []
        self.listen()
        self.url = urlunsplit(parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{self._port}"))

    def __enter__(self) -> CuttingProxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def swallow_reply_to(self, *words: bytes) -> None:
        """The next request that holds one of the words is passed on; its reply is not, and its connection ends. Once.

        Statements are prepared under names: the text travels with the first use, the name with every other.
        """
        self._looked_for = words

    def cut(self) -> None:
        """Nothing passes until `heal`, and nobody is told: who connects hears nothing, and neither side learns that the other
        has closed its end, then or later.
        """
        self._cuts += 1
        self._whole.clear()

    def heal(self) -> None:
        """What was sent during the cut arrives, on connections whose ends are still open."""
        self._whole.set()

    def drop(self) -> None:
        """Every connection ends, on both sides; new ones are welcome."""
        self._close(self._sockets)

    def listen(self) -> None:
        """Take connections; again, on the same port, after hang_up()."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def hang_up(self) -> None:
        """Nobody listens any more, and every connection ends, on both sides."""
        self._close([self._listener, *self._sockets])

    def stop(self) -> None:
        """For good."""
        self._stopped = True
        self.hang_up()
        self._whole.set()

    @staticmethod
    def _close(ends: list[socket.socket]) -> None:
        for end in ends:
            with _quietly():
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
                self._sockets.append(client)
                self._whole.wait()
                server = socket.create_connection(self._server)  # type: ignore[arg-type]
            except OSError:
                return
            self._sockets.append(server)
            if self._stopped:
                self._close([client, server])
                return
            threading.Thread(target=self._pass_on, args=(client, server), daemon=True).start()

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        with selectors.DefaultSelector() as selector, _quietly():
            selector.register(client, selectors.EVENT_READ)
            selector.register(server, selectors.EVENT_READ)
            swallow, cuts = False, self._cuts
            while True:
                for key, _ in selector.select():
                    self._whole.wait()
                    data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    if not data and cuts != self._cuts:
                        return  # the other side is not told
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
