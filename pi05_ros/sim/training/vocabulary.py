"""Train the SentencePiece model of the simulated tasks: prompts, state numbers, bytes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from pi05_ros.policy.prompt.prompt import state_prompt
from pi05_ros.sim.arm.tasks import TASKS
from pi05_ros.sim.training.shipped import CONFIG

_SENTENCES = 4000


def train_tokenizer(path: Path) -> Path:
    """Write a byte-pair model with byte fallback; ids 0 pad, 1 EOS, 2 BOS, 3 unknown.

    The corpus is the prompts with uniformly random states, so that numbers become pieces.
    """
    from sentencepiece import SentencePieceTrainer

    rng = np.random.default_rng(0)
    prompts = [task.prompt for task in TASKS.values()]
    corpus = (
        state_prompt(prompts[i % len(prompts)], rng.integers(-1, 256, 7))
        for i in range(_SENTENCES)
    )
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=corpus,
        model_writer=model,
        model_type="bpe",
        vocab_size=CONFIG.vocab,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        max_sentencepiece_length=16,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())
    return path
