"""The thread that packs, keeps and writes what the recorder receives.

The node hands over bytes and goes on: a slow disk fills a queue of bounded size, and what does not
fit is counted as lost. Everything that touches a file happens here.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pi05_ros.bags.recording.disk_sync import DiskSync
from pi05_ros.bags.recording.episode_bag import EpisodeBag, KeptMessage
from pi05_ros.bags.recording.ring_buffer import OVERHEAD, RingBuffer

POLL_S = 0.05
LARGE = 2**16
"""Bytes of a message that has to leave room for smaller ones."""


@dataclass(frozen=True)
class RecordingSettings:
    """Bounds of a recorder.

    Attributes:
        ring_s, ring_bytes: of the ring buffer.
        queue_bytes: waiting for the thread.
        chunk_bytes: a chunk is written when it is this large, and
        flush_s: at least this often.
        sync_s: seconds between fdatasync calls; 0: never before the end.
        compression: of chunks.
        max_bytes: a bag ends at this size; 0: no limit.

    """

    ring_s: float = 30.0
    ring_bytes: int = 256 * 2**20
    queue_bytes: int = 128 * 2**20
    chunk_bytes: int = 4 * 2**20
    flush_s: float = 0.25
    sync_s: float = 1.0
    compression: str = "none"
    max_bytes: int = 0


@dataclass
class RecordingState:
    """What the thread says about itself; replaced as a whole."""

    recording: bool = False
    goal_id: str = ""
    bag_path: str = ""
    whole: bool = False
    messages: int = 0
    bytes: int = 0
    lost: int = 0
    ring_s: float = 0.0
    ring_bytes: int = 0
    problem: str = ""
    lost_by_topic: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Start:
    path: Path
    goal_id: str
    facts: Mapping[str, str]
    first: tuple[KeptMessage, ...]


@dataclass(frozen=True)
class _Note:
    facts: Mapping[str, str]


@dataclass(frozen=True)
class _Stop:
    facts: Mapping[str, str]


@dataclass(frozen=True)
class _Save:
    path: Path
    facts: Mapping[str, str]
    first: tuple[KeptMessage, ...]


class RecordingThread:
    """Owns the bag and the ring buffer.

    Args:
        settings: bounds.
        pack: changes a message before it is kept, for example to a JPEG; runs in the thread.
        on_change: called from the thread when a bag begins or ends, or something is lost.
        delay: called before every write to a file; for tests of slow disks.

    """

    def __init__(
        self,
        settings: RecordingSettings,
        pack: Callable[[KeptMessage], KeptMessage],
        on_change: Callable[[], None],
        delay: Callable[[], None] = lambda: None,
    ) -> None:
        self.state = RecordingState()
        self._settings, self._pack, self._on_change, self._delay = (
            settings, pack, on_change, delay,
        )  # fmt: skip
        self._queue: deque[KeptMessage | _Start | _Note | _Stop | _Save] = deque()
        self._queued = 0
        self._unqueued: Counter[str] = Counter()  # lost before they got here
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._ending = False
        self._ring = RingBuffer(settings.ring_s, settings.ring_bytes)
        self._bag: EpisodeBag | None = None
        self._goal_id = ""
        self._lost_before: Counter[str] = Counter()
        self._flushed_s = self._synced_s = 0.0
        self._sync = DiskSync()
        self._problem = ""
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    # -- from the node ---------------------------------------------------------------------

    def offer(self, message: KeptMessage) -> None:
        """Hand over a message; it is dropped and counted if the thread is too far behind."""
        size = len(message.raw) + OVERHEAD
        with self._lock:
            limit = self._settings.queue_bytes
            if size > LARGE:  # what is left is for chunks and states
                limit = limit * 3 // 4
            if self._queued + size > limit:
                self._unqueued[message.topic] += 1
                return
            self._queued += size
            self._queue.append(message)
        self._wake.set()

    def lose(self, topic: str, count: int) -> None:
        """Count messages that were lost on the way to the node."""
        with self._lock:
            self._unqueued[topic] += count

    def start(
        self, path: Path, goal_id: str, facts: Mapping[str, str], first: tuple[KeptMessage, ...]
    ) -> None:
        """Begin a bag with these messages; one that is open is ended first."""
        self._command(_Start(path, goal_id, facts, first))

    def note(self, facts: Mapping[str, str]) -> None:
        """Add facts to the bag that is open."""
        self._command(_Note(facts))

    def stop(self, facts: Mapping[str, str]) -> None:
        """End the bag after what was offered before."""
        self._command(_Stop(facts))

    def save(self, path: Path, facts: Mapping[str, str], first: tuple[KeptMessage, ...]) -> None:
        """Write the ring buffer as a bag of its own."""
        self._command(_Save(path, facts, first))

    def end(self, timeout_s: float) -> bool:
        """End the bag and the thread; False if it is still writing."""
        self.stop({})
        self._ending = True
        self._wake.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _command(self, command: _Start | _Note | _Stop | _Save) -> None:
        with self._lock:
            self._queue.append(command)
        self._wake.set()

    # -- in the thread ---------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._wake.wait(POLL_S)
            self._wake.clear()
            while self._step():
                pass
            self._flush_if_due()
            self._tell()
            if self._ending and not self._queue:
                return

    def _step(self) -> bool:
        with self._lock:
            if not self._queue:
                return False
            item = self._queue.popleft()
            if isinstance(item, KeptMessage):
                self._queued -= len(item.raw) + OVERHEAD
        try:
            if isinstance(item, KeptMessage):
                self._take(item)
            elif isinstance(item, _Start):
                self._begin(item)
            elif isinstance(item, _Stop):
                self._finish(item.facts)
            elif isinstance(item, _Save):
                self._save_ring(item)
            elif self._bag is not None:
                self._bag.note(item.facts)
        except OSError as error:
            self._problem = f"{error.filename or ''}: {error.strerror or error}".lstrip(": ")
            self._tell(changed=True)
        except Exception as error:  # a message that nobody foresaw must not end the thread
            self._problem = f"{type(error).__name__}: {error}"
            if isinstance(item, KeptMessage):
                with self._lock:
                    self._unqueued[item.topic] += 1
            self._tell(changed=True)
        return True

    def _take(self, message: KeptMessage) -> None:
        packed = self._pack(message)
        self._ring.add(packed, time.monotonic_ns())
        if self._bag is not None:
            self._bag.add(packed)
            if self._bag.pending >= self._settings.chunk_bytes:
                self._flush()
        self._flush_if_due()

    def _begin(self, start: _Start) -> None:
        if self._bag is not None:
            self._finish({"note": "another recording began"})
        self._problem = ""
        self._goal_id = start.goal_id
        with self._lock:
            self._lost_before = self._unqueued.copy()
        self.state = RecordingState(goal_id=start.goal_id, bag_path=str(start.path))
        self._bag = EpisodeBag(start.path, start.facts, self._settings.compression)
        for message in start.first:
            self._bag.add(message)
        self._flush()
        self._tell(changed=True)

    def _finish(self, facts: Mapping[str, str], *, whole: bool = True) -> None:
        if self._bag is None:
            return
        bag, lost = self._bag, self._lost_now()
        bag.lost += lost
        bag.note(facts)
        self._delay()
        whole = bag.close(whole=whole and not lost and not self._sync.problem)
        self._sync.problem = ""
        self._bag = None
        state = self._described(bag, bag.lost)
        state.recording, state.whole = False, whole
        if not whole and not state.problem:
            state.problem = f"{bag.lost.total()} messages were lost"
        self._problem = state.problem
        self.state = state
        self._on_change()

    def _save_ring(self, save: _Save) -> None:
        bag = EpisodeBag(save.path, save.facts, self._settings.compression)
        for message in (*save.first, *self._ring.messages()):
            bag.add(message)
            if bag.pending >= self._settings.chunk_bytes:
                self._delay()
                bag.flush()
        bag.close(whole=True)
        if bag.problem:
            self._problem = bag.problem
        self._on_change()

    def _flush_if_due(self) -> None:
        if self._bag is None:
            return
        first = bool(self._bag.pending) and not self._bag.messages  # a bag with nothing is none
        if first or time.monotonic() - self._flushed_s >= self._settings.flush_s:
            self._flush()

    def _flush(self) -> None:
        if self._bag is None:
            return
        now_s = time.monotonic()
        every = self._settings.sync_s
        self._delay()
        self._bag.flush()
        self._flushed_s = time.monotonic()
        if every and now_s - self._synced_s >= every:
            self._synced_s = now_s
            self._sync.ask(self._bag.descriptor)
        if self._sync.problem:
            self._bag.problem = self._sync.problem
        limit = self._settings.max_bytes
        if limit and self._bag.size >= limit:
            self._bag.problem = f"the bag reached {limit} bytes"
            self._finish({"note": self._bag.problem}, whole=False)

    def _lost_now(self) -> Counter[str]:
        with self._lock:
            return self._unqueued - self._lost_before

    def _described(self, bag: EpisodeBag, lost: Counter[str]) -> RecordingState:
        return RecordingState(
            recording=True,
            goal_id=self._goal_id,
            bag_path=str(bag.path),
            messages=bag.messages,
            bytes=bag.size,
            lost=lost.total(),
            ring_s=self._ring.seconds,
            ring_bytes=self._ring.bytes,
            problem=bag.problem or self._problem,
            lost_by_topic=dict(lost),
        )

    def _tell(self, *, changed: bool = False) -> None:
        before = self.state
        if self._bag is not None:
            self.state = self._described(self._bag, self._bag.lost + self._lost_now())
        else:
            self.state.ring_s, self.state.ring_bytes = self._ring.seconds, self._ring.bytes
            self.state.problem = self._problem
        if changed or self.state.lost != before.lost:
            self._on_change()
