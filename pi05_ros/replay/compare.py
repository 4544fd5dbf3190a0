"""Comparison of two recorded runs, chunk by chunk."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pi05_ros.bags.chunk_record import ChunkRecord

SHOWN = 10  # differences in a report
ROUNDING = 1e-4  # what another order of float32 additions can do to an action


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same in the two runs."""

    observation_ns: int
    text: str
    chunk_id: int | None = None


@dataclass(frozen=True)
class Comparison:
    """Result of `compare`.

    Attributes:
        compared: chunks of both runs that answer the same samples.
        only_here, only_there: chunks that the other run has no partner for.
        largest: largest absolute difference of any action value, robot units.
        differences: what exceeds the tolerance or does not fit, in time order.

    """

    compared: int
    only_here: int
    only_there: int
    largest: float
    differences: list[Difference] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """True if the runs agree; runs without a common chunk do not."""
        return self.compared > 0 and not self.differences

    def report(self) -> str:
        """Lines for people: the verdict and the first differences."""
        lines = [
            f"compared {self.compared} chunks, largest action difference {self.largest:.3g}"
            + (f", {self.only_here} only in this run" if self.only_here else "")
            + (f", {self.only_there} only in the reference" if self.only_there else "")
        ]
        if self.compared == 0:
            lines.append("no two chunks answer the same samples: is it the same bag?")
        for difference in self.differences[:SHOWN]:
            label = "" if difference.chunk_id is None else f"chunk {difference.chunk_id}, "
            stamp = f"{difference.observation_ns / 1e9:.6f}"
            lines.append(f"  {label}observation {stamp} s: {difference.text}")
        if len(self.differences) > SHOWN:
            lines.append(f"  and {len(self.differences) - SHOWN} more")
        if self.differences and 0.0 < self.largest < ROUNDING:
            lines.append(
                "differences this small come from another machine, torch or number of CPU "
                f"threads: give the same threads (-p threads=N), or --tolerance {ROUNDING:g}"
            )
        lines.append("equal" if self.equal else "DIFFERENT")
        return "\n".join(lines)


def compare(
    run: Sequence[ChunkRecord],
    reference: Sequence[ChunkRecord],
    tolerance: float = 0.0,
    partial: bool = False,
) -> Comparison:
    """Compare two runs over the same bag.

    Chunks belong together if they answer the same observation stamp; where one stamp occurs
    several times (a looped bag, a dropped source), equal input stamps are preferred, then order.
    Times, timings, ids and the policy's identity are not compared.

    Args:
        run: this run.
        reference: the run to compare with.
        tolerance: largest accepted absolute difference of an action, robot units. 0 asks for
            equal bits.
        partial: accept chunks without partner, as between a live and an offline run, which
            look at different moments.

    """
    partners, only_here, only_there = _match(run, reference)
    differences: list[Difference] = []
    largest = 0.0
    for here, there in partners:
        if partial and here.key != there.key:
            only_here.append(here)
            only_there.append(there)
            continue
        texts, distance = _differences(here, there, tolerance)
        largest = max(largest, distance)
        differences += [Difference(here.observation_ns, text, here.chunk_id) for text in texts]
    compared = len(run) - len(only_here)
    if not partial:
        differences += [
            Difference(chunk.observation_ns, "only in this run", chunk.chunk_id)
            for chunk in only_here
        ]
        differences += [
            Difference(chunk.observation_ns, "only in the reference", chunk.chunk_id)
            for chunk in only_there
        ]
    differences.sort(key=lambda difference: difference.observation_ns)
    return Comparison(compared, len(only_here), len(only_there), largest, differences)


def _match(
    run: Sequence[ChunkRecord], reference: Sequence[ChunkRecord]
) -> tuple[list[tuple[ChunkRecord, ChunkRecord]], list[ChunkRecord], list[ChunkRecord]]:
    """Pairs with equal observation stamps, and what is left on both sides."""
    waiting: dict[int, list[ChunkRecord]] = defaultdict(list)
    for chunk in reference:
        waiting[chunk.observation_ns].append(chunk)
    partners: list[tuple[ChunkRecord, ChunkRecord]] = []
    only_here: list[ChunkRecord] = []
    for chunk in run:
        candidates = waiting[chunk.observation_ns]
        if not candidates:
            only_here.append(chunk)
            continue
        same = next((c for c in candidates if c.key == chunk.key), candidates[0])
        candidates.remove(same)
        partners.append((chunk, same))
    return partners, only_here, [chunk for left in waiting.values() for chunk in left]


def _differences(
    here: ChunkRecord, there: ChunkRecord, tolerance: float
) -> tuple[list[str], float]:
    """Texts of what differs in one pair, and the largest action difference."""
    texts: list[str] = []
    if here.key != there.key:
        sources = sorted(here.inputs.keys() | there.inputs.keys())
        changed = [name for name in sources if here.inputs.get(name) != there.inputs.get(name)]
        texts.append(f"other samples were used of {', '.join(changed)}")
    for field_name in ("prompt", "names", "meaning", "unit", "step_ns", "denoise_steps", "kv_age"):
        mine, other = getattr(here, field_name), getattr(there, field_name)
        if mine != other:
            texts.append(f"{field_name} is {mine!r}, reference {other!r}")
    if tolerance == 0.0 and here.seed != there.seed:
        texts.append(f"seed is {here.seed}, reference {there.seed}")
    if here.data.shape != there.data.shape:
        texts.append(f"data is {here.data.shape}, reference {there.data.shape}")
        return texts, float("inf")
    if here.data.size == 0:
        return texts, 0.0
    distance = np.abs(here.data.astype(np.float64) - there.data.astype(np.float64))
    distance = np.where(np.isfinite(distance), distance, np.inf)
    largest = float(distance.max())
    if largest > tolerance:
        step, column = np.unravel_index(int(np.argmax(distance)), distance.shape)
        texts.append(
            f"{here.names[column]} at step {step} is {here.data[step, column]:.6g}, reference "
            f"{there.data[step, column]:.6g} (off by {largest:.3g}, tolerance {tolerance:g}; "
            f"{int((distance > tolerance).sum())} of {distance.size} values)"
        )
    return texts, largest
