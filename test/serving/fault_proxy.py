"""A TCP proxy on loopback whose network can be made slow, cut, half-open or silent."""

import contextlib
import select
import socket
import struct
import threading
import time


class FaultProxy:
    """Forwards to a port; the attributes may be changed at any time.

    delay_s: every piece waits this long, in both directions.
    silent: pieces of connections that are there are dropped, nothing is closed (half-open).
    stalled: nothing is forwarded, everything later (packet loss, as TCP shows it).
    cut_up, cut_down: bytes after which a new connection is reset, to and from the server.
    refuse: connections are reset, those that are there and new ones.
    hold: new connections are accepted, and nothing is done with them until it is False.
    """

    def __init__(self, port):
        self.target = port
        self.delay_s = 0.0
        self.silent = self.stalled = self.refuse = self.hold = False
        self.cut_up = self.cut_down = None
        self.accepted = 0
        self._closed = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self):
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            if self.refuse:
                reset(client)
                continue
            thread = threading.Thread(target=self._forward, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _forward(self, client):
        cuts = {"up": self.cut_up, "down": self.cut_down}
        while self.hold and not self._closed:
            time.sleep(0.01)
        try:
            server = socket.create_connection(("127.0.0.1", self.target), timeout=10)
        except OSError:
            reset(client)
            return
        ends = {client: (server, "up"), server: (client, "down")}
        silent = False
        try:
            while not self._closed:
                readable = [] if self.stalled else select.select(list(ends), [], [], 0.02)[0]
                if self.stalled:
                    time.sleep(0.01)
                if self.refuse:
                    reset(client)
                    return
                silent = silent or self.silent
                for end in readable:
                    other, way = ends[end]
                    piece = end.recv(65536)
                    if silent:
                        if not piece:  # whom the network has forgotten hears of nothing
                            ends.pop(end)
                        continue
                    if not piece:
                        return
                    time.sleep(self.delay_s)
                    if cuts[way] is not None:
                        cuts[way] -= len(piece)
                        if cuts[way] < 0:
                            other.sendall(piece[: cuts[way]])
                            reset(client)
                            reset(server)
                            return
                    other.sendall(piece)
        except OSError:
            pass
        finally:
            client.close()
            server.close()


def reset(end):
    """Close with RST."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()


@contextlib.contextmanager
def proxy_to(port):
    proxy = FaultProxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
