"""Small tokenizers of Gemma's kind, trained here, in both file formats."""

import random
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import models, normalizers

_WORDS = (
    "pick place put open close move the a red blue green cup block drawer "
    "door plate bowl on in into from left right top bottom and then turn "
    "off stove cream cheese box basket State Task Action gripper arm towel fold lift "
    "push carefully spoon fork"
)


@dataclass(frozen=True)
class TokenizerFiles:
    sentencepiece: Path
    huggingface: Path


def _sentences():
    rng = random.Random(0)
    for _ in range(1500):
        text = " ".join(rng.choices(_WORDS.split(), k=rng.randint(2, 8)))
        state = " ".join(str(rng.randint(-1, 255)) for _ in range(rng.randint(3, 9)))
        yield f"Task: {text}, State: {state};"


def train(folder: Path, **options) -> Path:
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(_sentences()))
    settings = {
        "model_type": "bpe",
        "vocab_size": 500,
        "split_digits": True,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "user_defined_symbols": ["\n", "\n\n", "\u2581\u2581"],
        "pad_id": 0,
        "eos_id": 1,
        "bos_id": 2,
        "unk_id": 3,
        "num_threads": 1,
        "minloglevel": 2,
    }
    settings.update(options)
    prefix = folder / "model"
    sentencepiece.SentencePieceTrainer.Train(
        input=str(corpus), model_prefix=str(prefix), **settings
    )
    return prefix.with_suffix(".model")


def to_huggingface(model: Path) -> tokenizers.Tokenizer:
    """The same byte-pair model for the tokenizers library, as Gemma's tokenizer.json is built."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    size = processor.GetPieceSize()
    vocabulary = {processor.IdToPiece(i): i for i in range(size)}
    rank = {piece: processor.GetScore(i) for piece, i in vocabulary.items()}
    merges = []
    for piece, i in vocabulary.items():
        if processor.IsControl(i) or processor.IsByte(i) or processor.IsUnknown(i):
            continue
        for cut in range(1, len(piece)):
            pair = piece[:cut], piece[cut:]
            if pair[0] in vocabulary and pair[1] in vocabulary:
                merges.append((-rank[piece], vocabulary[pair[0]], vocabulary[pair[1]], pair))
    result = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[m[-1] for m in sorted(merges)],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    result.normalizer = normalizers.Replace(" ", "\u2581")
    result.add_special_tokens(["<pad>", "</s>", "<s>", "<unk>"])
    result.add_tokens([tokenizers.AddedToken("\n", normalized=False)])
    result.add_tokens([tokenizers.AddedToken("\n\n", normalized=False)])
    return result
