"""Finding and opening tokenizers; the errors say where it was looked for and how to get one."""

import shutil

import pytest
import tokenizers
from trained_tokenizers import train

from pi05_ros.model.checkpoint import hub
from pi05_ros.policy import Policy, PolicyError
from pi05_ros.policy.prompt.tokenizer import (
    ByteTokenizer,
    HuggingFaceTokenizer,
    check_tokenizer,
    load_tokenizer,
    tokenizer_candidates,
    tokenizer_doubts,
)


@pytest.fixture(autouse=True)
def _clean_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OPENPI_DATA_HOME", str(tmp_path / "openpi"))


def test_missing_tokenizer_names_file_places_and_source(tmp_path):
    with pytest.raises(PolicyError) as error:
        load_tokenizer(None, tmp_path, 257152)
    message = str(error.value)
    assert "\n" not in message
    for word in (
        "paligemma_tokenizer.model not found",
        str(tmp_path / "tokenizer.json"),
        str(tmp_path / "openpi" / "big_vision" / "paligemma_tokenizer.model"),
        str(tmp_path / "home" / ".cache" / "openpi" / "big_vision"),
        "gs://big_vision/paligemma_tokenizer.model",
        "google/paligemma-3b-pt-224",
        "parameter tokenizer",
    ):
        assert word in message


def test_places_in_order(tmp_path, tokenizer_files):
    home = tmp_path / "home" / ".cache" / "openpi" / "big_vision" / "paligemma_tokenizer.model"
    data = tmp_path / "openpi" / "big_vision" / "paligemma_tokenizer.model"
    beside = tmp_path / "checkpoint" / "paligemma_tokenizer.model"
    for path in (home, data, beside):
        path.parent.mkdir(parents=True)
        shutil.copy(tokenizer_files.sentencepiece, path)
        assert load_tokenizer(None, tmp_path / "checkpoint", 512).name == str(path)
    weights = tmp_path / "checkpoint" / "model.safetensors"
    weights.touch()
    assert tokenizer_candidates(weights)[0] == beside


def test_a_user_without_a_home(tmp_path, tokenizer_files, monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    beside = tmp_path / "tokenizer.model"
    beside.write_bytes(tokenizer_files.sentencepiece.read_bytes())
    assert load_tokenizer(None, tmp_path, 10**6).name == str(beside)
    with pytest.raises(PolicyError, match=r"~nobody-here/x does not exist"):
        load_tokenizer("~nobody-here/x", tmp_path, 10**6)
    with pytest.raises(PolicyError, match=r"~nobody-here/x does not exist"):
        Policy.load("~nobody-here/x")


def test_explicit_file_directory_and_bytes(tmp_path, tokenizer_files):
    assert load_tokenizer(tokenizer_files.sentencepiece, None, 512).bos_id == 2
    assert load_tokenizer(str(tokenizer_files.huggingface), None, 512).bos_id == 2
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(tokenizer_files.huggingface, folder / "tokenizer.json")
    assert load_tokenizer(folder, None, 512).name.endswith("tokenizer.json")
    assert isinstance(load_tokenizer("bytes", None, 512), ByteTokenizer)


def test_a_tokenizer_on_the_hub(tmp_path, tokenizer_files, monkeypatch):
    """Only the tokenizer's files are asked for: the repository may hold gigabytes."""
    shutil.copy(tokenizer_files.huggingface, tmp_path / "tokenizer.json")
    asked = []

    def download(hub_id, wanted):
        asked.append((hub_id.name, wanted))
        return tmp_path

    monkeypatch.setattr(hub, "_download", download)
    opened = load_tokenizer("hf://google/paligemma-3b-pt-224", None, 512)
    assert opened.name == str(tmp_path / "tokenizer.json")
    assert asked == [("google/paligemma-3b-pt-224", ("tokenizer.json", "*.model"))]
    with pytest.raises(PolicyError, match="'hf://x' is no hub id"):
        load_tokenizer("hf://x", None, 512)


@pytest.mark.parametrize("name", ["x.model", "x.json", "x"])
def test_missing_and_broken_files(tmp_path, name):
    with pytest.raises(PolicyError, match="does not exist"):
        load_tokenizer(tmp_path / name, None, 512)
    for content in (b"", b"garbage", b"\x00" * 100, b"{}", b'{"model": {}}'):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PolicyError, match=name):
            load_tokenizer(tmp_path / name, None, 512)


def test_truncated_model(tmp_path, tokenizer_files):
    path = tmp_path / "x.model"
    path.write_bytes(tokenizer_files.sentencepiece.read_bytes()[:-50])
    with pytest.raises(PolicyError, match=r"x\.model"):
        load_tokenizer(path, None, 512)


def test_tokenizer_of_another_model(tokenizer_files):
    with pytest.raises(PolicyError, match=r"has 500 tokens, but the checkpoint only 256"):
        load_tokenizer(tokenizer_files.sentencepiece, None, 256)


def test_the_image_token_behind_the_embedding_is_no_reason_to_refuse(tmp_path, tokenizer_files):
    """PaliGemma's tokenizer.json has <image> at 257152; pi0.5 has 257152 rows."""
    backend = tokenizers.Tokenizer.from_file(str(tokenizer_files.huggingface))
    size = backend.get_vocab_size()
    backend.add_special_tokens(["<image>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    text = "Task: pick up the red block, State: 12 -1;\nAction: "
    plain = load_tokenizer(tokenizer_files.huggingface, None, size)
    opened = load_tokenizer(tmp_path, None, size)
    assert opened.vocab_size == plain.vocab_size == size
    assert opened.encode(text) == plain.encode(text)
    with pytest.raises(PolicyError, match="'<image>', a special token that the model does not"):
        opened.encode("look at <image>")
    backend.add_tokens(["grasp"])
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(PolicyError, match=f"{size + 2} tokens, but the checkpoint only {size}"):
        load_tokenizer(tmp_path, None, size)


def test_a_bos_token_behind_the_embedding_is_refused(tmp_path, tokenizer_files):
    """Added behind all others, as some files have it: every prompt would begin with it."""
    backend = tokenizers.Tokenizer.from_file(str(tokenizer_files.huggingface))
    size = backend.get_vocab_size()
    text = backend.to_str().replace("<bos>", "<other>")
    backend = tokenizers.Tokenizer.from_str(text)
    backend.add_special_tokens(["<bos>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(PolicyError, match=f"{size + 1} tokens, but the checkpoint only {size}"):
        load_tokenizer(tmp_path, None, size)
    assert load_tokenizer(tmp_path, None, size + 1).bos_id == size


def test_tokenizer_without_bos(tmp_path):
    with pytest.raises(PolicyError, match="no BOS"):
        load_tokenizer(train(tmp_path, bos_id=-1, vocab_size=400), None, 512)


@pytest.mark.parametrize("vocabulary", [5, 64, 259, 512, 257152])
def test_bytes_stay_inside_small_vocabularies(vocabulary):
    ids = ByteTokenizer(vocabulary).encode("Zürich 0..9 \n" + chr(0x10FFFF))
    assert 3 <= min(ids) <= max(ids) < min(vocabulary, 259)
    assert len(ids) == len(("Zürich 0..9 \n" + chr(0x10FFFF)).encode())


def test_bytes_survive_lone_surrogates():
    assert ByteTokenizer(512).encode("\ud800")


# the tokenizer against the embedding ----------------------------------------------------------


class Fake:
    """A tokenizer of any size, BOS and newline."""

    name = "fake.model"
    adds_bos = True

    def __init__(self, size, bos=2, newline=(108,)):
        self.vocab_size, self.bos_id, self._newline = size, bos, list(newline)

    def encode(self, text):
        return self._newline if text == "\n" else [5]


@pytest.mark.parametrize("rows", [257152, 257216])
@pytest.mark.parametrize("size", [256000, 257152])
def test_paligemma_s_own_fits(rows, size):
    check_tokenizer(Fake(size), rows)


@pytest.mark.parametrize("rows", [257152, 257216])
@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [
        (Fake(63), "has 63 tokens, PaliGemma's has 257152"),
        (Fake(151936), "has 151936 tokens"),
        (Fake(256000, bos=1), "begins texts with token 1, PaliGemma's with 2"),
        (Fake(256000, newline=(107,)), r"encodes a newline as \[107\], PaliGemma's as \[108\]"),
        (Fake(256000, newline=(235248, 108)), "encodes a newline as"),
        (Fake(256000, newline=()), "encodes a newline as"),
        (Fake(262144), "262144 tokens, but the checkpoint only"),
    ],
)
def test_a_vocabulary_of_another_model_is_refused(tokenizer, words, rows):
    with pytest.raises(PolicyError, match=words):
        check_tokenizer(tokenizer, rows)


def test_a_small_one_beside_the_checkpoint_is_not_taken(tmp_path, tokenizer_files):
    shutil.copy(tokenizer_files.sentencepiece, tmp_path / "tokenizer.model")
    with pytest.raises(PolicyError, match="has 500 tokens, PaliGemma's has 257152"):
        load_tokenizer(None, tmp_path, 257152)


def test_doubts_of_sizes():
    assert tokenizer_doubts(Fake(500), 512) == ()
    assert "500 tokens for an embedding of 2048 rows" in tokenizer_doubts(Fake(500), 2048)[0]
    assert "encoded as bytes" in tokenizer_doubts(ByteTokenizer(257152), 257152)[0]
    assert tokenizer_doubts(ByteTokenizer(512), 512) == ()


def test_what_a_tokenizer_json_says_of_bos(tmp_path, tokenizer_files):
    backend = tokenizers.Tokenizer.from_file(str(tokenizer_files.huggingface))
    path = tmp_path / "tokenizer.json"
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    backend.save(str(path))
    assert HuggingFaceTokenizer(path).adds_bos
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="$A")
    backend.save(str(path))
    assert not HuggingFaceTokenizer(path).adds_bos
    text = backend.to_str().replace("<bos>", "<other>").replace("<s>", "<more>")
    path.write_text(text)
    opened = HuggingFaceTokenizer(path)
    assert (opened.bos_id, opened.adds_bos) == (None, False)


def test_a_directory_without_a_tokenizer_is_told_as_such(tmp_path):
    with pytest.raises(PolicyError, match="is a directory without paligemma"):
        load_tokenizer(tmp_path, None, 640)
