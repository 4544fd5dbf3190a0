"""Columns that a factor and an offset of their own put right: other statistics, other ends."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pi05_ros.replay.faults.windows import BAD, Hypothesis, Windows, explained

ALONG = 0.7
"""Squared correlation of a column with what was done from which on a line is believed."""


def normalization_faults(w: Windows, base: np.ndarray) -> Iterator[Hypothesis]:
    """A factor and an offset for each bad column, of its position or of its motion.

    Several columns: actions un-normalized with other statistics. One: the ends of its range.
    """
    hit: dict[int, tuple[float, float, float]] = {}  # column -> error left, factor, offset
    done, state = w.slice(), w.state[:, None]
    for about in (np.zeros_like(state), state):
        chunks, wanted = w.chunks - about, done - about
        for j in [j for j in range(len(base)) if base[j] > BAD]:
            x, y = chunks[..., j], wanted[..., j]
            seen = np.isfinite(x) & np.isfinite(y)
            if not seen.any():
                continue
            factor = 1.0
            if w.moves[j]:
                spread = float(np.var(x[seen]))
                if spread < 1e-10 or np.corrcoef(x[seen], y[seen])[0, 1] ** 2 < ALONG:
                    continue  # shrinking anything to its mean leaves less error
                factor = float(np.cov(x[seen], y[seen])[0, 1]) / spread
            offset = float(y[seen].mean() - factor * x[seen].mean())
            corrected = w.chunks.copy()
            corrected[..., j] = about[..., j % about.shape[-1]] + factor * x + offset
            after = float(w.errors(corrected)[j])
            if explained(base[j], after) and after < hit.get(j, (np.inf,))[0]:
                hit[j] = after, factor, offset
    if not hit:
        return
    errors = base.copy()
    for j, (after, _, _) in hit.items():
        errors[j] = after
    names = tuple(w.names[j] for j in hit)
    shown = ", ".join(f"{w.names[j]} times {f:.3g} {b:+.3g}" for j, (_, f, b) in hit.items())
    number = next(iter(hit.values()))[1]
    if len(hit) > 1:
        text = f"actions are normalized with other statistics: right would be {shown}"
        yield Hypothesis("normalization", text, names, number, errors, 2)
    else:
        text = f"the ends of the range of {names[0]} are off: right would be {shown}"
        yield Hypothesis("range", text, names, number, errors, 2)
