"""A small TCP proxy before a store that delays, cuts, swallows or garbles what the store answers."""

import socket
import threading
import time


class FaultyPath:
    """
    Listens on a free port and passes everything on, in the way that ``mode`` says at the moment.

    Attributes:
        mode: ``pass``, ``delay``, ``swallow`` (replies vanish), ``cut`` (closed at a reply), ``garble``, ``drip``
            or ``deaf`` (nothing reaches the store).
        delay: Seconds, for ``delay`` and ``drip``.
        every: Treats only one piece of replies of so many.
        only: Treats only connections whose latest request contains these bytes.
        hit: How many pieces of replies were treated, for a test to prove that its fault happened.
    """

    def __init__(self, port: int) -> None:
        self.mode, self.delay, self.every, self.hit, self._seen = "pass", 0.0, 1, 0, 0
        self.only, self._latest = b"", {}
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        """The port to give to a client."""
        return self._listener.getsockname()[1]

    @property
    def url(self) -> str:
        """The address to give to a client."""
        return f"redis://127.0.0.1:{self.port}/0"

    def close(self) -> None:
        """Stop listening and cut everything."""
        for sock in [self._listener, *self._open]:
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(client)
            try:
                store = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()  # as a store that is down would be met
                continue
            self._open.append(store)
            threading.Thread(target=self._pump, args=(client, store, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(store, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, replies: bool) -> None:
        try:
            while data := source.recv(65_536):
                if self.mode == "deaf":
                    self.hit += 1
                    continue
                if not replies:
                    self._latest[target] = data
                elif self.mode != "pass" and self.only in self._latest.get(source, b""):
                    self._seen += 1
                    if self._seen % self.every == 0:
                        self.hit += 1
                        data = self._spoil(data, target)
                target.sendall(data)
        except OSError:
            pass
        target.close()

    def _spoil(self, data: bytes, target: socket.socket) -> bytes:
        if self.mode == "delay":
            time.sleep(self.delay)
        elif self.mode == "swallow":
            return b""
        elif self.mode == "garble":
            return b"?" + data[::-1]
        elif self.mode == "cut":
            target.shutdown(socket.SHUT_RDWR)  # closing would wait for the thread that reads from it
        elif self.mode == "drip":
            for i in range(len(data)):
                target.sendall(data[i : i + 1])
                time.sleep(self.delay)
            return b""
        return data
