"""Capture launch sequences once and replay them: one CUDA graph per key."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator

import torch

_CAPTURE = threading.Lock()  # one capture at a time in the process, whichever engine


@contextlib.contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Without gradients, so that inputs tie no static buffer to their history."""
    with torch.no_grad():
        if device.type != "cuda":
            yield
            return
        with torch.cuda.device(device):
            yield


class Graphs:
    """Graphs of one engine, least recently used ones dropped beyond `limit`.

    On a CPU device (the Triton interpreter, in tests) sequences run directly.
    """

    def __init__(self, device: torch.device, limit: int = 64) -> None:
        self.device = device
        self.limit = limit
        self._graphs: OrderedDict[Hashable, list[torch.cuda.CUDAGraph]] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        # Captures of an engine share one stream: a cuBLAS workspace belongs to a stream, stays
        # (32 MiB on Hopper), and must not be that of graphs that another engine replays meanwhile.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __len__(self) -> int:
        return len(self._graphs)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._graphs

    def keys(self) -> list[Hashable]:
        """Keys of the captured graphs, the last used one last."""
        return list(self._graphs)

    def replay(self, key: Hashable, twin: bool = False) -> None:
        """Replay a captured graph, or its twin."""
        self._graphs[key][int(twin)].replay()

    def clear(self) -> None:
        """Forget all graphs."""
        self._graphs.clear()

    def run(
        self,
        key: Hashable,
        launch: Callable[[], None],
        twin: Callable[[], None] | None = None,
        use_twin: bool = False,
    ) -> None:
        """Replay the graph of `key` on the current stream; capture it from `launch` at first.

        A `twin` is another form of the same work. It is captured along, so that its first use is
        not slower than others, and replayed in place of the graph where `use_twin` is set.
        """
        forms = [launch] if twin is None else [launch, twin]
        if self.device.type != "cuda":
            forms[-1 if use_twin else 0]()
            return
        graphs = list(self._graphs.get(key, ()))
        while len(graphs) < len(forms):
            graphs.append(self.capture(forms[len(graphs)]))
        self._graphs[key] = graphs
        self._graphs.move_to_end(key)
        while len(self._graphs) > self.limit:
            self._graphs.popitem(last=False)
        graphs[1 if use_twin else 0].replay()

    def capture(self, launch: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Run once (compiles kernels, makes library workspaces), then record.

        The capture mode is thread-local: another thread may use CUDA meanwhile.
        """
        with _CAPTURE:
            stream = self._stream
            assert stream is not None
            stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(stream):
                launch()
            stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(
                graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
            ):
                launch()
        return graph
