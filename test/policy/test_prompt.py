"""Prompts: cleaning, bins, templates, both tokenizer libraries, and gluing equal to encoding."""

import logging
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trained_tokenizers import train

from pi05_ros.policy import PolicyError
from pi05_ros.policy.prompt.prompt import (
    PromptEncoder,
    clean_prompt,
    discretize_state,
    state_prompt,
)
from pi05_ros.policy.prompt.tokenizer import (
    ByteTokenizer,
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
)

EDGES = np.linspace(-1, 1, 257)[:-1]


def reference_bins(state):
    return np.digitize(state, bins=EDGES) - 1


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("  pick_up the Cup \n", "pick up the Cup"),
        ("a\nb_c", "a b c"),
        ("_x_", " x "),
        ("two  spaces", "two  spaces"),
    ],
)
def test_cleaning_strips_before_it_replaces(text, clean):
    assert clean_prompt(text) == clean


def test_every_edge_and_its_neighbors():
    values = np.concatenate(
        [EDGES, np.nextafter(EDGES, -9), np.nextafter(EDGES, 9), [-2, -1, 1, 2, 1e300, -1e300]]
    )
    np.testing.assert_array_equal(discretize_state(values), reference_bins(values))
    narrow = np.concatenate(
        [EDGES.astype(np.float32)]
        + [np.nextafter(EDGES.astype(np.float32), np.float32(s)) for s in (-9, 9)]
    )
    np.testing.assert_array_equal(discretize_state(narrow), reference_bins(narrow))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=32))
def test_bins_equal_digitize_for_any_float(values):
    state = np.array(values)
    np.testing.assert_array_equal(discretize_state(state), reference_bins(state))


def test_bins_at_the_ends_and_the_middle():
    state = np.array([-1.01, -1.0, -5e-324, 0.0, 0.9921874, 0.9921875, 1.0, 7.0])
    assert discretize_state(state).tolist() == [-1, 0, 127, 128, 254, 255, 255, 255]


def test_nan_is_an_error_that_says_where():
    with pytest.raises(PolicyError, match="state value 1 is NaN"):
        discretize_state(np.array([0.0, math.nan]))


def test_template():
    text = state_prompt("pick the cup", np.array([-1, 0, 128, 255]))
    assert text == "Task: pick the cup, State: -1 0 128 255;\nAction: "


@pytest.fixture(params=["bytes", "sentencepiece", "huggingface"])
def tokenizer(request, tokenizer_files):
    if request.param == "bytes":
        return ByteTokenizer(512)
    if request.param == "sentencepiece":
        return SentencePieceTokenizer(tokenizer_files.sentencepiece)
    return HuggingFaceTokenizer(tokenizer_files.huggingface)


def test_one_encode_with_bos_and_no_eos(tokenizer):
    encoder = PromptEncoder(tokenizer, discrete_state=True)
    ids = encoder.encode(" pick_up the cup ", np.array([0.0, 1.0]))
    text = "Task: pick up the cup, State: 128 255;\nAction: "
    assert ids.dtype == np.int64
    assert ids.tolist() == [tokenizer.bos_id, *tokenizer.encode(text)]


def test_prompt_without_state_encodes_the_newline_on_its_own(tokenizer):
    encoder = PromptEncoder(tokenizer, discrete_state=False)
    ids = encoder.encode("pick the cup", np.zeros(8))
    assert ids.tolist() == [
        tokenizer.bos_id, *tokenizer.encode("pick the cup"), *tokenizer.encode("\n"),
    ]  # fmt: skip
    np.testing.assert_array_equal(ids, encoder.encode("pick the cup", np.ones(8)))


def test_gemma_like_models_can_be_cut(tokenizer):
    assert PromptEncoder(tokenizer, discrete_state=True).incremental


prompts = st.one_of(
    st.text(min_size=1, max_size=60),
    st.text(alphabet="pick the cup 0123456789,;:_-\n", min_size=1, max_size=60),
).filter(lambda t: clean_prompt(t))
states = st.lists(st.floats(-1.3, 1.3), min_size=1, max_size=14).map(np.array)


@settings(max_examples=150, deadline=None)
@given(prompts, states)
def test_gluing_equals_encoding_the_whole_prompt(tokenizer_files, prompt, state):
    for tokenizer in (
        ByteTokenizer(512),
        _open(SentencePieceTokenizer, tokenizer_files.sentencepiece),
        _open(HuggingFaceTokenizer, tokenizer_files.huggingface),
    ):
        encoder = PromptEncoder(tokenizer, discrete_state=True, max_tokens=10_000)
        assert encoder.incremental
        whole = encoder.encode_whole(clean_prompt(prompt), discretize_state(state))
        for _ in range(2):  # the second time from memory
            assert encoder.encode(prompt, state).tolist() == whole


@settings(max_examples=100, deadline=None)
@given(
    st.text(alphabet="pick the red cup 0123456789,;:-", min_size=1, max_size=60).filter(
        lambda t: clean_prompt(t) and "  " not in t
    ),
    states,
)
def test_sentencepiece_and_huggingface_agree(tokenizer_files, prompt, state):
    one = PromptEncoder(_open(SentencePieceTokenizer, tokenizer_files.sentencepiece), True)
    other = PromptEncoder(_open(HuggingFaceTokenizer, tokenizer_files.huggingface), True)
    np.testing.assert_array_equal(one.encode(prompt, state), other.encode(prompt, state))


_opened: dict = {}


def _open(kind, path):
    return _opened.setdefault(path, kind(path))


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "unigram"},
        {"add_dummy_prefix": True},
        {"remove_extra_whitespaces": True},
        {"normalization_rule_name": "nmt_nfkc"},
        {"treat_whitespace_as_suffix": True},
        {"split_by_whitespace": False, "split_digits": False, "byte_fallback": True},
    ],
)
def test_models_that_cannot_be_cut_are_encoded_whole(tmp_path, options):
    tokenizer = SentencePieceTokenizer(train(tmp_path, vocab_size=340, **options))
    encoder = PromptEncoder(tokenizer, discrete_state=True)
    assert not encoder.incremental
    state = np.linspace(-1.1, 1, 9)
    expected = encoder.encode_whole("pick the cup", reference_bins(state))
    assert encoder.encode("pick the cup", state).tolist() == expected


def test_over_long_prompts_lose_their_tail_with_one_warning_each(tokenizer, caplog):
    encoder = PromptEncoder(tokenizer, discrete_state=True, max_tokens=20)
    long = "pick the cup " * 30
    with caplog.at_level(logging.WARNING):
        for value in (0.0, 0.5, 1.0):
            ids = encoder.encode(long, np.full(7, value))
            whole = encoder.encode_whole(clean_prompt(long), discretize_state(np.full(7, value)))
            assert ids.tolist() == whole[:20]
        encoder.encode("another " * 40, np.zeros(7))
    assert len(caplog.records) == 2
    assert "cut to 20" in caplog.records[0].getMessage()
    assert all(len(record.getMessage()) < 200 for record in caplog.records)


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_empty_prompt(text):
    with pytest.raises(PolicyError, match="prompt is empty"):
        PromptEncoder(ByteTokenizer(512), True).encode(text, np.zeros(2))


def test_many_prompts_do_not_pile_up():
    encoder = PromptEncoder(ByteTokenizer(512), True)
    for i in range(200):
        encoder.encode(f"prompt {i}", np.zeros(2))
    assert len(encoder._heads) <= 16
