"""A websocket server for Foxglove, by `foxglove-sdk`: /pi05/... topics for its panels.

Images and paths have Foxglove's own message types, everything else is JSON. It listens on this
machine only unless it is told otherwise: there is no password.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pi05_ros.bags.cdr_messages import NS
from pi05_ros.errors import Pi05Error
from pi05_ros.view.tool_path import ToolPose

PORT = 8765
HOST = "127.0.0.1"
QUALITY = 90  # of JPEG
DATA_TOPICS = ("chunk", "joints", "latency", "executor", "notes")
_SCHEMA: dict[str, Any] = {"type": "object"}


class ViewError(Pi05Error, RuntimeError):
    """The view cannot be served."""


class FoxgloveSink:
    """Serves what a Presenter shows.

    Args:
        roles: cameras.
        host, port: where it listens; port 0 takes a free one.

    Attributes:
        port: where it listens.

    Raises:
        ViewError: the library is missing, or the port is taken.

    """

    def __init__(self, roles: Sequence[str], host: str = HOST, port: int = PORT) -> None:
        try:
            import foxglove
            from foxglove import channels, messages
        except ImportError as error:
            raise ViewError(
                "pi05 view needs the Python package foxglove-sdk: pip install foxglove-sdk"
            ) from error
        self._m = messages
        context = self._context = foxglove.Context()  # channels close with it
        try:
            self._server = foxglove.start_server(
                name="pi05",
                host=host,
                port=port,
                context=context,
                capabilities=[foxglove.Capability.Time],
            )
        except Exception as error:  # the library raises RuntimeError and its own
            raise ViewError(f"cannot listen on {host}:{port}: {error}") from error
        self.port = int(self._server.port)
        self.host = host
        self._images = {
            role: channels.CompressedImageChannel(f"/pi05/{role}/model_image", context=context)
            for role in roles
        }
        self._data = {
            name: foxglove.Channel(
                f"/pi05/{name}", schema=_SCHEMA, message_encoding="json", context=context
            )
            for name in DATA_TOPICS
        }
        self._path = channels.PosesInFrameChannel("/pi05/tool_path", context=context)
        self._scene = channels.SceneUpdateChannel("/pi05/scene", context=context)

    @property
    def url(self) -> str:
        """Address for a viewer."""
        return f"ws://{self.host}:{self.port}"

    def image(self, role: str, stamp_ns: int, pixels: np.ndarray) -> None:
        """See `presenter.Sink`."""
        import simplejpeg

        channel = self._images.get(role)
        if channel is None:
            return
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=QUALITY)
        message = self._m.CompressedImage(
            timestamp=self._time(stamp_ns), frame_id=f"{role}_camera", data=data, format="jpeg"
        )
        channel.log(message, log_time=stamp_ns)

    def data(self, topic: str, stamp_ns: int, values: Mapping[str, Any]) -> None:
        """See `presenter.Sink`."""
        self._data[topic].log(json.dumps(values, allow_nan=False).encode(), log_time=stamp_ns)

    def path(self, stamp_ns: int, frame: str, poses: Sequence[ToolPose]) -> None:
        """See `presenter.Sink`."""
        m = self._m
        made, points = [], []
        for pose in poses:
            x, y, z = (float(value) for value in pose.position)
            qx, qy, qz, qw = pose.quaternion
            turn = m.Quaternion(x=qx, y=qy, z=qz, w=qw)
            made.append(m.Pose(position=m.Vector3(x=x, y=y, z=z), orientation=turn))
            points.append(m.Point3(x=x, y=y, z=z))
        time = self._time(stamp_ns)
        self._path.log(
            m.PosesInFrame(timestamp=time, frame_id=frame, poses=made), log_time=stamp_ns
        )
        last = max(len(points) - 1, 1)
        colors = [m.Color(r=k / last, g=0.6, b=1 - k / last, a=1.0) for k in range(len(points))]
        line = m.LinePrimitive(
            type=m.LinePrimitiveLineType.LineStrip, thickness=0.006, points=points, colors=colors
        )
        ball = m.SpherePrimitive(
            pose=made[0], size=m.Vector3(x=0.02, y=0.02, z=0.02), color=colors[0]
        )
        entity = m.SceneEntity(
            timestamp=time, frame_id=frame, id="tool path", lines=[line], spheres=[ball]
        )
        self._scene.log(m.SceneUpdate(entities=[entity]), log_time=stamp_ns)

    def time(self, now_ns: int) -> None:
        """Show the time of a recording."""
        self._server.broadcast_time(now_ns)

    def restart(self) -> None:
        """The recording starts again: viewers forget what they have."""
        self._server.clear_session()

    def close(self) -> None:
        """Stop serving."""
        self._server.stop()

    def _time(self, stamp_ns: int) -> Any:
        return self._m.Timestamp(sec=stamp_ns // NS, nsec=stamp_ns % NS)

    def __enter__(self) -> FoxgloveSink:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
