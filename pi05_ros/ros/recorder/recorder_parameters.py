"""Parameters of the episode recorder: one dataclass names, describes, bounds and defaults them.

python -m pi05_ros.ros.recorder.recorder_parameters --markdown     # the table of docs/recording.md
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from pi05_ros.bags.recording.mcap_writer import COMPRESSIONS
from pi05_ros.bags.recording.recording_thread import RecordingSettings
from pi05_ros.request_options import filled
from pi05_ros.runtime.parameter_specs import main, param, specs_of

MB = 2**20
CAMERA_TOPICS = tuple(
    f"{name}/image_raw" for name in ("base_camera", "wrist_camera", "wrist_camera_2")
)


@dataclass(frozen=True)
class RecorderParameters:
    """Every parameter of the recorder, all read-only."""

    folder: str = param("pi05_recordings", "Where bags are written; each is a folder in it.")
    autostart: bool = param(False, "Configure and activate when the process starts.")
    policy_node: str = param("pi05_policy", "Name of the policy node.")
    executor_node: str = param("pi05_executor", "Name of the executor node.")
    task_node: str = param("pi05_task", "Name of the task node; its goals with `record` are bags.")
    camera_topics: tuple[str, ...] = param(
        CAMERA_TOPICS,
        "Image topics. Where nobody publishes one, the topic with /compressed behind it is taken.",
    )
    extra_topics: tuple[str, ...] = param((), "Further topics, whatever their type.")
    jpeg_quality: int = param(
        0, "Raw images are kept as JPEG of this quality; 0 keeps pixels.", within=(0, 100)
    )
    ring_s: float = param(
        RecordingSettings.ring_s, "Seconds that the ring buffer keeps.", within=(0.0, 3600.0)
    )
    ring_mb: int = param(
        RecordingSettings.ring_bytes // MB, "Most memory of the ring buffer.", within=(1, 65536)
    )
    queue_mb: int = param(
        RecordingSettings.queue_bytes // MB,
        "Most memory of what waits to be written; what comes beyond is lost and counted.",
        within=(1, 65536),
    )
    save_on_fault: bool = param(
        True, "Save the ring buffer when the executor or a task has a fault."
    )
    flush_s: float = param(
        RecordingSettings.flush_s, "A chunk is written at least this often.", within=(0.05, 1.0)
    )
    sync_s: float = param(
        RecordingSettings.sync_s,
        "Seconds between calls of fdatasync, for losses of power; 0: only at the end of a bag.",
        within=(0.0, 60.0),
    )
    compression: str = param(
        RecordingSettings.compression, "Of the chunks of a bag.", choices=COMPRESSIONS
    )
    max_bag_mb: int = param(
        0, "A bag ends at this size, and says so; 0: no limit.", within=(0, 10**8)
    )

    @property
    def settings(self) -> RecordingSettings:
        """Bounds of the recording thread."""
        return filled(
            RecordingSettings,
            self,
            ring_bytes=self.ring_mb * MB,
            queue_bytes=self.queue_mb * MB,
            max_bytes=self.max_bag_mb * MB,
        )


SPECS = specs_of(RecorderParameters)

if __name__ == "__main__":
    sys.exit(main(SPECS, "episode recorder"))
