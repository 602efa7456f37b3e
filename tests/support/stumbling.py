"""A front before an HTTP server that refuses or drops the next requests, then passes everything on."""

from __future__ import annotations

import re
import socket
import threading
from types import TracebackType

__all__ = ["StumblingFront"]


class StumblingFront:
    """trouble: the status line of its refusals; empty: it hangs up without a word."""

    def __init__(self, server_port: int, trouble: str) -> None:
        self._server_port, self._trouble = server_port, trouble
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.left = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> StumblingFront:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def stumble(self, times: int) -> None:
        """The next requests fail."""
        self.left = times

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """One request per connection, so that each of them can stumble."""
        with client:
            head, body = self._request(client)
            if not head:
                return
            if self.left > 0:
                self.left -= 1
                if self._trouble:
                    client.sendall(f"HTTP/1.1 {self._trouble}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
                return
            with socket.create_connection(("127.0.0.1", self._server_port)) as server:
                server.sendall(head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1) + body)
                while data := server.recv(65536):
                    client.sendall(data)

    @staticmethod
    def _request(client: socket.socket) -> tuple[bytes, bytes]:
        data = b""
        while b"\r\n\r\n" not in data:
            more = client.recv(65536)
            if not more:
                return b"", b""
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: *(\d+)", head.lower())
        while length and len(body) < int(length[1]):
            body += client.recv(65536)
        return head + b"\r\n\r\n", body
