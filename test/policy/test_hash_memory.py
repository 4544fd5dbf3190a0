"""Hashes of weights are remembered for files that have not changed, and for no others."""

import dataclasses
import os
from types import SimpleNamespace

import pytest

from pi05_ros.model.checkpoint.file_hash import RunningHash, checkpoint_hash, file_states
from pi05_ros.model.errors import CheckpointError
from pi05_ros.policy.checkpoints import hash_memory
from pi05_ros.policy.checkpoints.description import hashed_info
from pi05_ros.policy.checkpoints.hash_memory import remember, remembered


@dataclasses.dataclass(frozen=True)
class Info:
    checkpoint_hash: str = ""


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hash_memory, "SMALL_BYTES", 1)
    monkeypatch.setattr(hash_memory, "SETTLED_NS", 0)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"some weights")
    return path


def kept(tmp_path):
    return list((tmp_path / "cache/pi05_ros/hashes").glob("*"))


def load(path):
    """What a policy's loading does with the hash: where it came from, and what it is."""
    states = file_states(path)
    known = remembered(states)
    closed = []
    policy = SimpleNamespace(info=Info(), warm_up=lambda: 0.0, close=lambda: closed.append(True))
    loaded = SimpleNamespace(checkpoint_hash=RunningHash(path, states, known))
    return known is not None, hashed_info(policy, loaded, warm_up=True).checkpoint_hash


def test_the_second_start_knows_the_hash_until_the_file_changes(weights):
    digest = checkpoint_hash(weights)
    assert load(weights) == (False, digest)
    assert load(weights) == (True, digest)
    other = weights.with_name("other")
    other.write_bytes(b"SOME weights")  # of the same size
    os.utime(other, ns=(1, weights.stat().st_mtime_ns))
    os.replace(other, weights)
    known, changed = load(weights)
    assert not known
    assert changed == checkpoint_hash(weights) != digest
    assert load(weights) == (True, changed)


def test_a_file_that_changes_while_it_is_read_is_refused_although_its_hash_is_known(weights):
    load(weights)
    states = file_states(weights)
    known = remembered(states)
    assert known
    running = RunningHash(weights, states, known)
    assert not running.running
    weights.write_bytes(b"other weights")
    with pytest.raises(CheckpointError, match="changed while it was read"):
        running.result()


@pytest.mark.parametrize("name", ["SMALL_BYTES", "SETTLED_NS"])
def test_small_and_new_files_are_hashed_anew(weights, tmp_path, monkeypatch, name):
    monkeypatch.setattr(hash_memory, name, 2**62)
    load(weights)
    assert not kept(tmp_path)


def test_what_is_damaged_or_open_to_others_is_not_believed(weights, tmp_path):
    digest = checkpoint_hash(weights)
    load(weights)
    (path,) = kept(tmp_path)
    assert path.stat().st_mode & 0o077 == 0
    sound = path.read_bytes()
    for damaged in (sound[:-9], b"[]", b"{}", b"\xff", sound.replace(b"sha256:", b"sha1:")):
        path.write_bytes(damaged)
        assert remembered(file_states(weights)) is None
    assert load(weights) == (False, digest)  # and written again
    path.chmod(0o622)
    assert load(weights) == (False, digest)
    assert load(weights) == (True, digest)


def test_nothing_is_kept_where_nothing_lasts(weights, monkeypatch):
    monkeypatch.setattr(hash_memory, "cache_place", lambda: None)
    states = file_states(weights)
    remember(states, checkpoint_hash(weights))
    assert remembered(states) is None
