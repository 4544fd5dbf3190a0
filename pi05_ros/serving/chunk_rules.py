"""How the chunks of a session continue each other, as a request or the server's options say."""

from __future__ import annotations

from dataclasses import dataclass

from pi05_ros.policy.chunking.kv_reuse import MODES

NO_CONTINUATION = "chunks of this server stand alone; accepted: chunk_mode plain with kv_reuse 1"

NO_KV_REUSE = (
    "a fleet does not keep KV caches, the next request may go to another replica; accepted: "
    "kv_reuse 1, with any chunk_mode"
)


@dataclass(frozen=True)
class ChunkRules:
    """How the chunks of a session continue each other.

    Attributes:
        mode: parameter ``chunk_mode`` of the node.
        reuse: parameter ``kv_reuse`` of the node.

    """

    mode: str = MODES[0]
    reuse: str = "1"

    @property
    def continuing(self) -> bool:
        """Whether anything of the chunk before is needed."""
        return self != ChunkRules()
