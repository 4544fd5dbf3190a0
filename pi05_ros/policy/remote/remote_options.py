"""How a policy server is called, and how its address looks."""

from __future__ import annotations

from dataclasses import dataclass

from pi05_ros.policy.chunking.kv_reuse import MODES, make_rule
from pi05_ros.policy.errors import PolicyError


@dataclass(frozen=True)
class RemoteOptions:
    """How a remote policy is called.

    Attributes:
        deadline_s: how long an answer is waited for.
        connect_attempts: attempts to connect before loading fails.
        jpeg_quality: 1 to 95 sends JPEG to servers that take it (`pi05 serve`); 0 sends pixels.
        resize: shrink images to the model's 224 x 224 before they are sent, with padding, as the
            model's own preprocessing does.
        api_key: of the server; empty for none.
        chunk_mode, kv_reuse: how chunks continue each other, as the node's parameters; done by
            the server, which must be `pi05 serve`.
        command_delay_s: how much earlier than their times chunks are followed, see the executor;
            so much more is tied to the chunk before.

    """

    deadline_s: float = 1.0
    connect_attempts: int = 3
    jpeg_quality: int = 0
    resize: bool = False
    api_key: str = ""
    chunk_mode: str = MODES[0]
    kv_reuse: str = "1"
    command_delay_s: float = 0.0

    def __post_init__(self) -> None:
        if not 0.01 <= self.deadline_s <= 60.0:
            raise PolicyError(f"remote deadline_s is {self.deadline_s!r}; accepted: 0.01 to 60")
        if not 0 <= self.jpeg_quality <= 95:
            raise PolicyError(
                f"remote jpeg_quality is {self.jpeg_quality!r}; accepted: 0 (off) to 95"
            )
        if self.chunk_mode not in MODES:
            raise PolicyError(
                f"remote chunk_mode is {self.chunk_mode!r}; accepted: {', '.join(MODES)}"
            )
        if not 0.0 <= self.command_delay_s <= 1.0:
            raise PolicyError(
                f"remote command_delay_s is {self.command_delay_s!r}; accepted: 0 to 1"
            )
        make_rule(self.kv_reuse)

    @property
    def continuing(self) -> bool:
        """Whether anything of the chunk before is needed."""
        return self.chunk_mode != MODES[0] or self.kv_reuse != "1"


def is_remote(checkpoint: str) -> bool:
    """Whether a checkpoint is the address of a policy server."""
    return checkpoint.startswith(("ws://", "wss://"))
