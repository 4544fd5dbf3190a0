"""Prompts: cleaning, bins, templates, both tokenizer libraries, length."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


states = st.lists(st.floats(-1.3, 1.3), min_size=1, max_size=14).map(np.array)


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


@pytest.mark.parametrize("discrete_state", [True, False])
def test_over_long_prompts_are_refused_and_never_lose_the_state(tokenizer, discrete_state):
    """Also one token too many; the message says how long the text may be."""
    state = np.linspace(-1, 1, 7)
    free = PromptEncoder(tokenizer, discrete_state, max_tokens=10_000)
    words = "pick the cup " * 30
    limit = len(free.encode(words[:60], state))
    encoder = PromptEncoder(tokenizer, discrete_state, max_tokens=limit)
    assert len(encoder.encode(words[:60], state)) == limit
    for size in range(61, 300, 7):
        if len(free.encode(words[:size], state)) <= limit:
            continue
        with pytest.raises(PolicyError, match=f"too long.*takes {limit}; shorten") as error:
            encoder.encode(words[:size], state)
        assert ("and the robot's state" in str(error.value)) is discrete_state
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 300


def test_a_state_that_leaves_no_room_for_any_prompt(tokenizer):
    with pytest.raises(PolicyError, match="the robot's state alone needs"):
        PromptEncoder(tokenizer, True, max_tokens=5).encode("x", np.zeros(7))


@settings(max_examples=100, deadline=None)
@given(st.text(min_size=1, max_size=400).filter(lambda t: clean_prompt(t)), states)
def test_what_is_encoded_ends_with_the_state_whatever_the_text(text, state):
    tokenizer = ByteTokenizer(512)
    encoder = PromptEncoder(tokenizer, True, max_tokens=200)
    values = " ".join(map(str, reference_bins(state)))
    end = tokenizer.encode(f", State: {values};\nAction: ")
    try:
        ids = encoder.encode(text, state).tolist()
    except PolicyError:
        return
    assert ids[-len(end) :] == end


def test_without_bos(tokenizer):
    state = np.zeros(2)
    whole = PromptEncoder(tokenizer, True).encode("x", state)
    bare = PromptEncoder(tokenizer, True, bos=False).encode("x", state)
    np.testing.assert_array_equal(bare, whole[1:])


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_empty_prompt(text):
    with pytest.raises(PolicyError, match="prompt is empty"):
        PromptEncoder(ByteTokenizer(512), True).encode(text, np.zeros(2))


def test_many_prompts_do_not_pile_up():
    encoder = PromptEncoder(ByteTokenizer(512), discrete_state=False)
    for i in range(200):
        encoder.encode(f"prompt {i}", np.zeros(2))
    assert len(encoder._constant) <= 16
