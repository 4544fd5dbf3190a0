"""Hostile inputs by kind: makes cases from seeds, runs them with limits, prints what came of them.

python test/hostile/hostile_run.py --cases 10000              # `make hostile`
python test/hostile/hostile_run.py --target bag --seed 17     # one case again, with its text
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
LIMIT_S = 60.0
"""Wall time of one case; what hangs would hang for ever, and a busy machine is no fault."""
OUTCOMES = ("answered", "refused", "hung", "crashed", "wrong")
BAD = OUTCOMES[2:]


@dataclass
class Report:
    """Outcomes by target, and a line for every case that must not be."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def add(self, target: str, seed: int, result: str, text: str) -> None:
        self.counts.setdefault(target, Counter())[result] += 1
        if result in BAD:
            self.faults.append(f"{target} {seed}: {result}: {text}")

    def table(self) -> str:
        lines = [f"{'target':20}" + "".join(f"{name:>10}" for name in OUTCOMES)]
        total: Counter[str] = Counter()
        for target, counts in self.counts.items():
            total.update(counts)
            lines.append(f"{target:20}" + "".join(f"{counts[name]:10d}" for name in OUTCOMES))
        lines.append(f"{'all':20}" + "".join(f"{total[name]:10d}" for name in OUTCOMES))
        return "\n".join(lines)


class Worker:
    """The process that runs the cases; made anew after one that hung or died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._waiting = selectors.DefaultSelector()

    def run(self, target: str, seed: int) -> tuple[str, str]:
        """Outcome of a case and its text."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(f"{target} {seed}\n".encode())
            process.stdin.flush()
        if not self._waiting.select(LIMIT_S):
            self.close()
            return "hung", f"no answer for {LIMIT_S:g} s"
        line = process.stdout.readline()
        if not line:
            code = process.wait()
            self.close()
            return "crashed", f"the process ended with code {code}"
        found = json.loads(line)
        return found["result"], found["text"]

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "hostile_worker.py")], env=environment, bufsize=0,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._waiting.register(self._process.stdout, selectors.EVENT_READ)
        return self._process

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        self._waiting.unregister(self._process.stdout)
        self._process.kill()
        self._process.communicate()
        self._process = None


def run(targets: Sequence[str], seeds: range) -> Report:
    """All seeds of all targets."""
    report, worker = Report(), Worker()
    try:
        for target in targets:
            for seed in seeds:
                report.add(target, seed, *worker.run(target, seed))
    finally:
        worker.close()
    return report


def target_names() -> list[str]:
    """Names of all targets, without importing what they need."""
    text = (HERE / "hostile_targets.py").read_text()
    names = text[text.index("    for target in (") :].split("(", 1)[1].split(")", 1)[0]
    return [name.strip() for name in names.replace("\n", " ").split(",") if name.strip()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000, help="of all targets together")
    parser.add_argument("--first", type=int, default=0, help="first seed of every target")
    parser.add_argument("--target", choices=target_names(), help="only this one")
    parser.add_argument("--seed", type=int, help="with --target: only this case")
    args = parser.parse_args()
    if args.seed is not None and args.target:
        worker = Worker()
        print(*worker.run(args.target, args.seed), sep=": ")
        worker.close()
        return 0
    targets = [args.target] if args.target else target_names()
    count = -(-args.cases // len(targets))
    report = run(targets, range(args.first, args.first + count))
    for fault in report.faults[:50]:
        print(fault)
    print(report.table())
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
