"""Recordings that are cut, killed, starved of disk: what is read is whole, and says so."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pi05_ros.bags.bag import Bag, BagError, BagWriter
from pi05_ros.bags.cdr_messages import NS, encode, joint_state_message, string_message
from pi05_ros.bags.recording.episode_bag import EpisodeBag, KeptMessage
from pi05_ros.bags.recording.recording_thread import RecordingSettings, RecordingThread
from pi05_ros.bags.recording.ring_buffer import RingBuffer

JOINTS = "sensor_msgs/msg/JointState"
STRING = "std_msgs/msg/String"


def joints(index, topic="/joint_states"):
    message = joint_state_message(["a", "b"], [float(index), 0.0], index * NS // 100)
    return KeptMessage(topic, JOINTS, index * NS // 100 + 1, encode(message))


def write(path, count=100, each=10, compression="none", close=True):
    bag = EpisodeBag(path, {"goal_id": "7"}, compression)
    for index in range(count):
        bag.add(joints(index))
        if index % 20 == 7:
            prompt = encode(string_message("go"))
            bag.add(KeptMessage("/prompt", STRING, index * NS // 100 + 1, prompt))
        if index % each == each - 1:
            bag.flush()
    return bag.close(True) if close else bag


def numbers(bag):
    return [int(m.decode().position[0]) for m in bag.messages(["/joint_states"])]


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_whole_bag_is_read_by_us_and_by_the_mcap_library(tmp_path, compression):
    assert write(tmp_path / "bag", compression=compression)
    with Bag(tmp_path / "bag") as bag:
        assert bag.whole
        assert not bag.notes
        assert numbers(bag) == list(range(100))
        assert bag.topics["/joint_states"].count == 100
        assert bag.custom["goal_id"] == "7"
    reader = pytest.importorskip("mcap.reader")
    with (tmp_path / "bag" / "bag.mcap").open("rb") as file:
        reading = reader.make_reader(file, validate_crcs=True)
        assert reading.get_summary().statistics.message_count == 105
        assert len(list(reading.iter_messages())) == 105


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_file_that_is_cut_anywhere_is_read_up_to_its_last_whole_chunk(tmp_path, compression):
    write(tmp_path / "bag", compression=compression)
    data = (tmp_path / "bag" / "bag.mcap").read_bytes()
    file = tmp_path / "cut.mcap"
    lengths, refused = set(), 0
    for size in sorted({*random.Random(1).sample(range(len(data)), 120), len(data) - 1}):
        file.write_bytes(data[:size])
        try:
            with Bag(file) as bag:
                found = numbers(bag)
                assert not bag.whole
                assert any("was cut" in note for note in bag.notes)
        except BagError:
            refused += 1
            continue
        assert found == list(range(len(found)))
        assert len(found) % 10 == 0, "chunks are of ten messages"
        lengths.add(len(found))
    assert len(lengths) == 10
    assert refused < 30


def test_damage_at_the_end_of_a_cut_file_costs_a_chunk(tmp_path):
    bag = write(tmp_path / "bag", close=False)
    file = tmp_path / "bag" / "bag.mcap"
    assert bag.messages == 105
    data = bytearray(file.read_bytes())
    data[-1200:-1000] = bytes(200)
    file.write_bytes(data)
    with Bag(tmp_path / "bag") as found:
        assert not found.whole
        assert 0 < len(numbers(found)) < 100


def test_a_cut_file_of_another_writer_is_read_too(tmp_path):
    with BagWriter(tmp_path / "bag") as writer:
        for index in range(30_000):
            message = joints(index)
            writer.write_raw(message.topic, message.msgtype, message.log_ns, message.raw)
    data = (tmp_path / "bag" / "bag.mcap").read_bytes()
    file = tmp_path / "cut.mcap"
    file.write_bytes(data[: len(data) * 9 // 10])
    with Bag(file) as bag:
        assert not bag.whole
        found = numbers(bag)
    assert found == list(range(len(found)))
    assert len(found) > 5000


def test_a_recording_that_has_not_ended_is_readable_and_says_so(tmp_path):
    bag = write(tmp_path / "bag", count=95, close=False)
    with Bag(tmp_path / "bag") as found:
        assert not found.whole
        assert numbers(found) == list(range(90))
        assert found.custom["goal_id"] == "7"
    assert bag.close(True)
    with Bag(tmp_path / "bag") as found:
        assert found.whole
        assert numbers(found) == list(range(95))


WRITE = """
import sys, time
from pathlib import Path
sys.path.insert(0, {here!r})
from test_recording import *
thread = RecordingThread(RecordingSettings(flush_s=0.05, sync_s=0.1), lambda m: m, lambda: None)
thread.start(Path(sys.argv[1]), "7", {{"goal_id": "7"}}, ())
print("go", flush=True)
for index in range(10**6):
    thread.offer(joints(index))
    time.sleep(0.0005)
"""


def test_a_recorder_that_is_killed_leaves_a_readable_bag(tmp_path):
    code = WRITE.format(here=str(Path(__file__).parent))
    rng = random.Random(5)
    for trial in range(3):
        path = tmp_path / f"bag{trial}"
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "go\n"
        file = path / f"{path.name}.mcap"
        while not (file.exists() and file.stat().st_size > 20_000):
            time.sleep(0.01)
        time.sleep(rng.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with Bag(path) as bag:
            assert not bag.whole
            found = numbers(bag)
        assert found
        assert found == list(range(len(found)))


LIMITED = """
import resource, sys
sys.path.insert(0, {here!r})
from test_recording import *
thread = RecordingThread(RecordingSettings(flush_s=0.05), lambda m: m, lambda: None)
thread.start(Path(sys.argv[1]), "7", {{}}, ())
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
for index in range(2000):
    thread.offer(joints(index))
    time.sleep(0.0001)
while thread._queue:
    time.sleep(0.01)
assert thread.end(60)
state = thread.state
assert not state.whole and not state.recording
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
thread = RecordingThread(RecordingSettings(flush_s=0.05), lambda m: m, lambda: None)
thread.start(Path(sys.argv[1] + "b"), "8", {{}}, ())
thread.offer(joints(0))
assert thread.end(60)
print(json.dumps([state.problem, state.lost, thread.state.whole]))
"""


def test_a_full_disk_costs_messages_and_is_told(tmp_path):
    code = LIMITED.format(here=str(Path(__file__).parent))
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "bag")], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    problem, lost, whole = json.loads(run.stdout)
    assert "File too large" in problem
    assert whole, "the next bag is whole again"
    with Bag(tmp_path / "bag") as bag:
        assert not bag.whole
        found = numbers(bag)
    assert len(found) + lost == 2000
    assert found == sorted(found)
    assert found


def test_a_slow_disk_costs_messages_not_memory_and_is_told(tmp_path):
    changes = []
    settings = RecordingSettings(queue_bytes=20_000, flush_s=0.05)
    thread = RecordingThread(
        settings, lambda m: m, lambda: changes.append(1), delay=lambda: time.sleep(0.2)
    )
    thread.start(tmp_path / "bag", "7", {}, ())
    for index in range(1000):
        thread.offer(joints(index))
        time.sleep(0.0003)
    assert thread.end(60)
    assert not thread.state.whole
    lost = thread.state.lost
    assert lost > 0
    with Bag(tmp_path / "bag") as bag:
        assert len(numbers(bag)) + lost == 1000
        assert json.loads(bag.custom["pi05_lost"]) == {"/joint_states": lost}


def test_the_ring_keeps_the_last_seconds_within_its_bytes(tmp_path):
    ring = RingBuffer(1.0, 10**6)
    for index in range(500):
        ring.add(joints(index), index * NS // 100)
    assert [int(m.log_ns * 100 // NS) for m in ring.messages()] == list(range(399, 500))
    small = RingBuffer(1e6, 5000)
    for index in range(500):
        small.add(joints(index), index)
        assert small.bytes <= 5000
    assert small.short
    thread = RecordingThread(RecordingSettings(), lambda m: m, lambda: None)
    for index in range(50):
        thread.offer(joints(index))
    thread.save(tmp_path / "saved", {"fault": "why"}, ())
    assert thread.end(60)
    with Bag(tmp_path / "saved") as bag:
        assert bag.whole
        assert numbers(bag) == list(range(50))
        assert bag.custom["fault"] == "why"
