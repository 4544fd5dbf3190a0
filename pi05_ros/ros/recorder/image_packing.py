"""Raw images as JPEG, for recordings that do not fill the disk."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pi05_ros.bags.cdr_messages import COMPRESSED_IMAGE, IMAGE, decode, encode, typestore
from pi05_ros.bags.recording.episode_bag import KeptMessage
from pi05_ros.runtime.inputs.conversion import check_image, image_to_rgb
from pi05_ros.runtime.inputs.jpeg import encode_jpeg


class JpegPacking:
    """Turns Image into CompressedImage on the topic with /compressed behind it.

    Args:
        quality: of the JPEG.
        complain: told once per topic about images that stay as they are.

    """

    def __init__(self, quality: int, complain: Callable[[str], None]) -> None:
        self._quality = quality
        self._complain = complain
        self._odd: set[str] = set()

    def __call__(self, message: KeptMessage) -> KeptMessage:
        """The message to keep; what cannot be packed stays as it is."""
        if message.msgtype != IMAGE:
            return message
        try:
            image = decode(message.raw, IMAGE)
            check_image(image)
            data = encode_jpeg(image_to_rgb(image), self._quality)
            packed = typestore().types[COMPRESSED_IMAGE](
                header=image.header, format="jpeg", data=np.frombuffer(data, np.uint8)
            )
            raw = encode(packed)
        except Exception as error:  # rosbags and the decoders raise many kinds
            if message.topic not in self._odd:
                self._odd.add(message.topic)
                self._complain(f"images of {message.topic} are kept as they are: {error}")
            return message
        return KeptMessage(f"{message.topic}/compressed", COMPRESSED_IMAGE, message.log_ns, raw)


def as_they_are(message: KeptMessage) -> KeptMessage:
    """No packing."""
    return message
