"""A page of ours in headless Chromium: it speaks Foxglove's websocket protocol and posts back."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "view" / "page.html"
NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """Path of the browser, or None."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@dataclass
class Posted:
    """What the page has posted: the newest state, and frames (PNG) if it was asked to film."""

    state: dict[str, Any] = field(default_factory=dict)
    frames: list[bytes] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)


@contextlib.contextmanager
def open_page(server: str, profile: Path, film: bool = False) -> Iterator[Posted]:
    """The page in a browser, connected to a websocket server, until the block ends."""
    posted = Posted()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = PAGE.read_bytes() if self.path.startswith("/page") else b""
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with posted.changed:
                if self.path == "/seen":
                    posted.state = json.loads(body)
                else:
                    posted.frames.append(base64.b64decode(body.split(b",", 1)[1]))
                posted.changed.notify_all()
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Nothing."""

    pages = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{pages.server_port}/page?server={server}" + (
        "&film=1" if film else ""
    )
    browser = chromium()
    assert browser is not None
    words = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    words += [
        "--disable-dev-shm-usage",
        f"--user-data-dir={profile}",
        "--disable-background-networking",
    ]
    process = subprocess.Popen(
        [*words, url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield posted
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        pages.shutdown()
        pages.server_close()
