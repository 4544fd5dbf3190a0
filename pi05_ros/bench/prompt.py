"""How long it takes to renew the prompt tokens at a tick: the state in the prompt changes.

python -m pi05_ros.bench.prompt [--tokenizer paligemma_tokenizer.model] [--states 14]

Without a tokenizer file it measures bytes and a small SentencePiece model of Gemma's kind that it
trains on the spot.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pi05_ros.policy.errors import PolicyError
from pi05_ros.policy.prompt.prompt import PromptEncoder
from pi05_ros.policy.prompt.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer

PROMPT = "pick up the red block and place it in the drawer"
TARGET_MS = 0.3


def small_sentencepiece(folder: Path) -> Path:
    """Train a byte-pair model with Gemma's settings on made-up prompts; returns its file."""
    from sentencepiece import SentencePieceTrainer

    rng = np.random.default_rng(0)
    words = PROMPT.split()
    lines = [
        f"Task: {' '.join(rng.permutation(words))}, State: "
        f"{' '.join(map(str, rng.integers(-1, 256, 8)))};"
        for _ in range(500)
    ]
    model = io.BytesIO()
    SentencePieceTrainer.Train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=340,
        split_digits=True,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    path = folder / "small.model"
    path.write_bytes(model.getvalue())
    return path


def measure(call: Callable[[np.ndarray], object], states: np.ndarray) -> np.ndarray:
    """Milliseconds of each call over states ``[N, n]``, after one call to warm up."""
    call(states[0])
    times = np.empty(len(states))
    for i, state in enumerate(states):
        start = time.perf_counter()
        call(state)
        times[i] = time.perf_counter() - start
    return 1e3 * times


def report(tokenizer: Tokenizer, states: np.ndarray) -> float:
    """Print p50 and p99 of renewing; returns the p99."""
    encoder = PromptEncoder(tokenizer, discrete_state=True)
    renew = measure(lambda state: encoder.encode(PROMPT, state), states)
    tokens = len(encoder.encode(PROMPT, states[0]))
    p50, p99 = np.percentile(renew, [50, 99])
    print(
        f"{Path(tokenizer.name).name:24s} {tokens:4d} tokens  p50 {p50:.4f} ms  p99 {p99:.4f} ms"
    )
    return float(p99)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit 0 if the 99th percentile is below the target for every tokenizer, 2 on bad options."""
    parser = argparse.ArgumentParser(
        prog="pi05 bench prompt", description="time to renew the prompt tokens at a tick"
    )
    parser.add_argument("--tokenizer", help="SentencePiece .model or tokenizer.json")
    parser.add_argument("--states", type=int, default=14, help="state values in the prompt")
    parser.add_argument("--ticks", type=int, default=5000)
    args = parser.parse_args(argv)
    if not (0 <= args.states <= 1000 and 1 <= args.ticks <= 10**6):
        raise PolicyError(
            f"--states is {args.states}, --ticks {args.ticks}; accepted: 0 to 1000 states, 1 to "
            "1000000 ticks"
        )
    states = np.random.default_rng(0).uniform(-1.05, 1.05, (args.ticks, args.states))
    with tempfile.TemporaryDirectory() as folder:
        if args.tokenizer:
            tokenizers = [load_tokenizer(args.tokenizer, None, 2**31)]
        else:
            path = small_sentencepiece(Path(folder))
            tokenizers = [ByteTokenizer(512), load_tokenizer(path, None, 2**31)]
        worst = max(report(tokenizer, states) for tokenizer in tokenizers)
    print(f"worst p99 {worst:.4f} ms, target {TARGET_MS} ms")
    return 0 if worst < TARGET_MS else 1


if __name__ == "__main__":
    raise SystemExit(main())
