"""Images taken past rclpy: same messages, same refusals, no pixels that are overwritten."""

import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
import rclpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage, Image

from pi05_ros.bags.cdr_messages import COMPRESSED_IMAGE, IMAGE, header, typestore
from pi05_ros.ros.policy_parts import image_take
from pi05_ros.ros.policy_parts.image_take import ImageTake, NoImageTakeError, rclpy_take
from pi05_ros.ros.processes.domain import free_domain_id

PATIENCE_S = 60.0
FIELDS = {
    Image: ("height", "width", "encoding", "is_bigendian", "step"),
    CompressedImage: ("format",),
}
texts = st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"]), max_size=20)
short = texts.filter(lambda text: len(text.encode()) <= image_take.MOST_TEXT)


def content(kind, message):
    """Everything of a message that the node reads."""
    stamp = message.header.stamp
    values = [getattr(message, name) for name in FIELDS[kind]]
    values = [value[:16] if isinstance(value, str) else value for value in values]
    return [stamp.sec, stamp.nanosec, *values, bytes(memoryview(message.data))]


def filled(kind, values):
    """Message of hypothesis values."""
    message = kind()
    message.header.stamp.sec, message.header.stamp.nanosec = values["stamp"]
    message.header.frame_id = values["frame"]
    message.data.frombytes(values["data"])
    if kind is CompressedImage:
        message.format = values["text"]
        return message
    message.height, message.width, message.step = values["numbers"]
    message.encoding, message.is_bigendian = values["text"], values["big"]
    return message


uint32 = st.integers(0, 2**32 - 1)
messages = st.fixed_dictionaries(
    {
        "stamp": st.tuples(st.integers(-(2**31), 2**31 - 1), uint32),
        "frame": texts,
        "text": short,
        "data": st.binary(max_size=300),
        "numbers": st.tuples(uint32, uint32, uint32),
        "big": st.integers(0, 255),
    }
)


@pytest.mark.parametrize("kind", [Image, CompressedImage])
@settings(max_examples=100, deadline=None)
@given(values=messages)
def test_c_message_reads_as_rclpy_wrote_it(kind, values):
    take, message = ImageTake(kind), filled(kind, values)
    pointer = take.messages.obtain()
    assert take.messages.fill(message, pointer)
    assert content(kind, take.read(pointer)) == content(kind, message)


class Wire:
    """Raw bytes to two subscriptions, of which one is taken by rclpy and one past it."""

    def __init__(self, context, kind):
        topic = f"wire_{kind.__name__.lower()}"
        self.node = rclpy.create_node(f"image_take_{kind.__name__.lower()}", context=context)
        profile = QoSProfile(depth=200)
        self.kind = kind
        self.publisher = self.node.create_publisher(kind, topic, profile)
        self.ours, self.theirs = (
            self.node.create_subscription(kind, topic, lambda message: None, profile)
            for _ in range(2)
        )
        self.take = ImageTake(kind)
        until(lambda: self.publisher.get_subscription_count() == 2)
        self.published = 0

    def drained(self, subscription, take):
        """Contents of what arrives until the last message, which is known; None: not readable."""
        found = []
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            try:
                taken = take(subscription)
            except Exception:
                found.append(None)
                continue
            if taken is None:
                time.sleep(0.002)
                continue
            self.last = taken
            found.append(content(self.kind, taken.message))
            if found[-1][0] == LAST:
                return found[:-1]
        raise AssertionError("the last message did not arrive")

    def both(self, payloads):
        """What each of the two makes of the same bytes."""
        last = self.kind()
        last.header.stamp.sec = LAST
        for payload in payloads:
            self.publisher.publish(payload)
        self.publisher.publish(last)
        return self.drained(self.ours, self.take), self.drained(self.theirs, rclpy_take)


LAST = 424_242


def until(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def wires():
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=free_domain_id())
    made = {kind: Wire(context, kind) for kind in FIELDS}
    yield made
    for wire in made.values():
        wire.node.destroy_node()
    rclpy.shutdown(context=context)


def cdr(kind, *, little=True, seed=0):
    """CDR bytes of a message in either byte order."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, int(rng.integers(0, 200)), np.uint8)
    head = header(int(rng.integers(0, 2**40)), "camera" * int(rng.integers(0, 3)))
    if kind is CompressedImage:
        name = COMPRESSED_IMAGE
        message = typestore().types[name](header=head, format="png", data=data)
    else:
        name = IMAGE
        message = typestore().types[name](
            header=head, height=3, width=int(rng.integers(0, 9)), encoding="bgr8",
            is_bigendian=0, step=int(rng.integers(0, 2**32)), data=data,
        )  # fmt: skip
    return bytes(typestore().serialize_cdr(message, name, little_endian=little))


@pytest.mark.parametrize("kind", [Image, CompressedImage])
def test_both_byte_orders_arrive_as_with_rclpy(wires, kind):
    payloads = [cdr(kind, little=bool(seed % 2), seed=seed) for seed in range(20)]
    ours, theirs = wires[kind].both(payloads)
    assert len(ours) == 20
    assert None not in ours
    assert ours == theirs


@pytest.mark.parametrize("kind", [Image, CompressedImage])
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_hostile_bytes_are_refused_as_with_rclpy(wires, kind, data):
    payloads = []
    for seed in range(8):
        raw = bytearray(cdr(kind, seed=seed))
        at = data.draw(st.integers(0, len(raw) - 4)) // 4 * 4
        raw[at : at + 4] = data.draw(
            st.sampled_from([b"\xff" * 4, b"\x00\x00\x00\x80", bytes(4), b"\x7f\xff\xff\xff"])
        )
        payloads.append(bytes(raw[: data.draw(st.integers(4, len(raw)))]))
    ours, theirs = wires[kind].both(payloads)
    assert ours == theirs


def test_pixels_stay_while_they_are_used_and_memory_is_used_again(wires):
    wire = wires[Image]
    kept, addresses = [], set()
    for value in range(12):
        message = Image(height=2, width=2, encoding="mono8", step=2)
        message.data.frombytes(bytes([value] * 4))
        wire.publisher.publish(message)
        found = []
        until(lambda found=found: found.append(wire.take(wire.ours)) or found[-1] is not None)
        until(lambda: rclpy_take(wire.theirs) is not None)
        taken = found[-1].message
        if value < 4:
            kept.append(taken)
        addresses.add(taken.data.ctypes.data)
        del taken, found
    assert [picture.data.tolist() for picture in kept] == [[value] * 4 for value in range(4)]
    assert wire.take.messages.idle <= image_take.KEPT
    kept.clear()
    assert wire.take.messages.idle == image_take.KEPT


def test_number_and_time_of_a_message_are_those_of_rclpy(wires):
    wire = wires[Image]
    wire.publisher.publish(Image())
    found = {}
    for name, subscription, take in (
        ("ours", wire.ours, wire.take),
        ("theirs", wire.theirs, rclpy_take),
    ):
        until(lambda n=name, s=subscription, t=take: found.update({n: t(s)}) or found[n])
    assert found["ours"].sequence == found["theirs"].sequence > 0
    assert abs(found["ours"].received_ns - time.time_ns()) < PATIENCE_S * 1e9
    assert found["theirs"].received_ns > 0


def test_a_middleware_without_numbers_and_times_is_no_fault():
    from contextlib import nullcontext

    info = {"received_timestamp": 0, "publication_sequence_number": None}

    class Handle(nullcontext):
        def take_message(self, kind, raw):
            return "message", info

    taken = rclpy_take(SimpleNamespace(handle=Handle(), msg_type=Image))
    assert (taken.received_ns, taken.sequence) == (0, 0)


def test_other_layouts_are_noticed_before_anything_is_taken(monkeypatch):
    import ctypes

    fields = image_take.CImage._fields_

    class Moved(ctypes.Structure):
        _fields_ = [*fields[:3], *fields[4:], fields[3]]

    monkeypatch.setattr(image_take, "CImage", Moved)
    with pytest.raises(NoImageTakeError, match="lays out Image in another way"):
        ImageTake(Image)


def test_without_it_the_node_takes_through_rclpy_and_says_so(bench, monkeypatch):
    def refuse(kind):
        raise NoImageTakeError("no such symbol: rcl_take")

    warnings = []
    monkeypatch.setattr("pi05_ros.ros.policy_parts.subscriptions.ImageTake", refuse)
    b = bench()
    monkeypatch.setattr(
        type(b.node.get_logger()), "warning", lambda self, text, **_: warnings.append(text)
    )
    b.activate()
    b.chunks(2)
    assert any("through rclpy" in text and "rcl_take" in text for text in warnings)
