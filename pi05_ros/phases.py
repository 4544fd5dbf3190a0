"""What a long start is doing: the log says which part, once a second, and how long each took.

    with phase("weights"):
        ...

Logs go to the library's logger, and so to the node's log and `/rosout`. Phases may nest; a part
that is done within a tenth of a second is not worth a line.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator

EVERY_S = 1.0
BRIEF_S = 0.1
logger = logging.getLogger(__name__)


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Log that this part is under way while it is, and then how long it took."""
    began, done = time.monotonic(), threading.Event()

    def tell() -> None:
        while not done.wait(EVERY_S):
            logger.info("loading: %s, %.0f s so far", name, time.monotonic() - began)

    teller = threading.Thread(target=tell, name=f"phase {name}", daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()
        took = time.monotonic() - began
        if took >= BRIEF_S:
            logger.info("loading: %s took %.1f s", name, took)
