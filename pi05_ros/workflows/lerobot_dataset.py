"""Files of a LeRobot dataset, versions 3.0 and 2.1: tables, videos, metadata.

One data file and one video per camera and episode. What an episode added is kept in a JSON file
under ``meta/episodes_done``, written last, so that an export goes on where it was interrupted; the
metadata of the whole dataset is made from these files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pi05_ros.errors import InvalidValueError
from pi05_ros.small_files import read_json
from pi05_ros.workflows.episode_media import merge_stats, pixel_format, quantiles

VERSIONS = ("3.0", "2.1")
CHUNK = 1000  # files per folder
DONE = "meta/episodes_done"
PATHS = {
    "3.0": (
        "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    ),
    "2.1": (
        "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    ),
}
FLAGS = ("intervention", "success", "success_known")
"""Columns of bool: a person had the arm; the episode's task was done; whether that is known."""
COUNTERS = ("timestamp", "frame_index", "episode_index", "index", "task_index")


@dataclass(frozen=True)
class DatasetLayout:
    """What all episodes of a dataset share.

    Attributes:
        version: "3.0" or "2.1".
        fps: frames per second, a whole number.
        robot: name of the robot profile.
        state, action: names of the columns.
        cameras: feature -> (height, width).
        flags: columns of bool.

    """

    version: str
    fps: int
    robot: str
    state: tuple[str, ...]
    action: tuple[str, ...]
    cameras: dict[str, tuple[int, int]]
    flags: tuple[str, ...] = FLAGS

    def data_path(self, episode: int) -> str:
        """Path of an episode's table below the dataset."""
        return _path(PATHS[self.version][0], episode, "")

    def video_path(self, episode: int, feature: str) -> str:
        """Path of an episode's video below the dataset."""
        return _path(PATHS[self.version][1], episode, feature)

    def features(self) -> dict[str, Any]:
        """`features` of info.json."""
        found: dict[str, Any] = {
            name: {"dtype": "float32", "shape": [len(columns)], "names": list(columns)}
            for name, columns in (("observation.state", self.state), ("action", self.action))
        }
        for feature, (height, width) in self.cameras.items():
            found[feature] = {
                "dtype": "video",
                "shape": [height, width, 3],
                "names": ["height", "width", "channels"],
                "info": {
                    "video.height": height,
                    "video.width": width,
                    "video.codec": "h264",
                    "video.pix_fmt": pixel_format(height, width),
                    "video.is_depth_map": False,
                    "video.fps": self.fps,
                    "video.channels": 3,
                    "has_audio": False,
                },
            }
        for name in self.flags:
            found[name] = {"dtype": "bool", "shape": [1], "names": None}
        for name in COUNTERS:
            dtype = "float32" if name == "timestamp" else "int64"
            found[name] = {"dtype": dtype, "shape": [1], "names": None}
        return found


@dataclass(frozen=True)
class EpisodeRecord:
    """What one episode added: its source, length, tasks and statistics per feature."""

    source: str
    length: int
    tasks: list[str]
    stats: dict[str, dict[str, Any]]


class LeRobotWriter:
    """Adds episodes to a dataset.

    Args:
        out: folder; empty, new, or an export of the same layout.
        layout: of the dataset.

    Raises:
        InvalidValueError: the folder holds something else.

    """

    def __init__(self, out: Path, layout: DatasetLayout) -> None:
        if layout.version not in VERSIONS:
            accepted = ", ".join(VERSIONS)
            raise InvalidValueError(f"version {layout.version!r}; accepted: {accepted}")
        self.out, self.layout = out, layout
        place = out / DONE / "layout.json"
        told = _told(layout)
        if place.exists():
            there = read_json(place)
            if there != told:
                raise InvalidValueError(
                    f"{out} is an export with other cameras, joints, rate or version; "
                    "give another --out"
                )
        elif out.exists() and any(out.iterdir()):
            raise InvalidValueError(
                f"{out} is not empty and no dataset of pi05; give another --out"
            )
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            _write(place, told)
        self.episodes = self._read_done()

    @property
    def sources(self) -> set[str]:
        """Recordings that are in the dataset."""
        return {episode.source for episode in self.episodes}

    def add(self, record: EpisodeRecord, columns: Mapping[str, np.ndarray]) -> None:
        """Write the table of the next episode, whose videos are there, and note it as done.

        Args:
            record: its facts; `tasks` in the order of their first use.
            columns: "observation.state" ``[T, n]``, "action" ``[T, m]``, "task" ``[T]`` (index
                into `record.tasks`), and the flags ``[T]``.

        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        episode, length = len(self.episodes), record.length
        tasks = self.tasks(record.tasks)
        start = sum(each.length for each in self.episodes)
        index = np.arange(length)
        table = pa.table(
            {
                "observation.state": _vectors(columns["observation.state"]),
                "action": _vectors(columns["action"]),
                "timestamp": pa.array((index / self.layout.fps).astype(np.float32)),
                "frame_index": pa.array(index),
                "episode_index": pa.array(np.full(length, episode)),
                "index": pa.array(index + start),
                **{name: pa.array(columns[name].astype(bool)) for name in self.layout.flags},
                "task_index": pa.array([tasks.index(record.tasks[i]) for i in columns["task"]]),
            }
        )
        path = self.out / self.layout.data_path(episode)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        pq.write_table(table, part)
        os.replace(part, path)
        _write(self.out / DONE / f"{episode:06d}.json", asdict(record))
        self.episodes.append(record)

    def tasks(self, more: Iterable[str] = ()) -> list[str]:
        """All tasks in the order of their first use."""
        known = [task for episode in self.episodes for task in episode.tasks]
        return list(dict.fromkeys([*known, *more]))

    def finish(self) -> None:
        """Write the metadata of the whole dataset."""
        layout, count = self.layout, len(self.episodes)
        data, video = PATHS[layout.version]
        info: dict[str, Any] = {
            "codebase_version": f"v{layout.version}",
            "robot_type": layout.robot,
            "total_episodes": count,
            "total_frames": sum(episode.length for episode in self.episodes),
            "total_tasks": len(self.tasks()),
            "chunks_size": CHUNK,
            "fps": layout.fps,
            "splits": {"train": f"0:{count}"},
            "data_path": data,
            "video_path": video if layout.cameras else None,
            "features": layout.features(),
        }
        if layout.version == "2.1":
            info["total_videos"] = count * len(layout.cameras)
            info["total_chunks"] = -(-count // CHUNK)
            self._finish_lines()
        else:
            info |= {"data_files_size_in_mb": 100, "video_files_size_in_mb": 200}
            self._finish_tables()
            _write(self.out / "meta" / "stats.json", self._stats())
        _write(self.out / "meta" / "info.json", info)

    def _stats(self) -> dict[str, dict[str, Any]]:
        """Statistics of the dataset; those of single episodes do not tell its quantiles."""
        import pyarrow.parquet as pq

        stats = merge_stats(episode.stats for episode in self.episodes)
        paths = [self.out / self.layout.data_path(k) for k in range(len(self.episodes))]
        for name, columns in (
            ("observation.state", self.layout.state),
            ("action", self.layout.action),
        ):
            parts = [
                pq.read_table(path, columns=[name])[name].combine_chunks().flatten().to_numpy()
                for path in paths
            ]
            if parts:
                stats[name] |= quantiles(np.concatenate(parts).reshape(-1, len(columns)))
        return stats

    def _finish_lines(self) -> None:
        meta = self.out / "meta"
        tasks = [{"task_index": i, "task": task} for i, task in enumerate(self.tasks())]
        episodes = [
            {"episode_index": i, "tasks": each.tasks, "length": each.length}
            for i, each in enumerate(self.episodes)
        ]
        stats = [{"episode_index": i, "stats": each.stats} for i, each in enumerate(self.episodes)]
        for name, rows in (("tasks", tasks), ("episodes", episodes), ("episodes_stats", stats)):
            _replace(meta / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def _finish_tables(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows: list[dict[str, Any]] = []
        start = 0
        for index, episode in enumerate(self.episodes):
            chunk, file = divmod(index, CHUNK)
            row: dict[str, Any] = {
                "episode_index": index,
                "tasks": episode.tasks,
                "length": episode.length,
                "data/chunk_index": chunk,
                "data/file_index": file,
                "dataset_from_index": start,
                "dataset_to_index": start + episode.length,
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
            }
            for feature in self.layout.cameras:
                row[f"videos/{feature}/chunk_index"] = chunk
                row[f"videos/{feature}/file_index"] = file
                row[f"videos/{feature}/from_timestamp"] = 0.0
                row[f"videos/{feature}/to_timestamp"] = episode.length / self.layout.fps
            rows.append(row)
            start += episode.length
        tasks = self.tasks()
        table = pa.table({"task_index": pa.array(range(len(tasks))), "task": pa.array(tasks)})
        table = table.replace_schema_metadata({"pandas": json.dumps(_TASK_INDEX)})
        place = self.out / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
        place.parent.mkdir(parents=True, exist_ok=True)
        for path, content in (
            (self.out / "meta" / "tasks.parquet", table),
            (place, pa.Table.from_pylist(rows)),
        ):
            part = path.with_name(f".{path.name}.part")
            pq.write_table(content, part)
            os.replace(part, path)

    def _read_done(self) -> list[EpisodeRecord]:
        found: list[EpisodeRecord] = []
        while (path := self.out / DONE / f"{len(found):06d}.json").exists():
            found.append(EpisodeRecord(**read_json(path)))
        return found


# What pandas needs to take the column "task" as the index of tasks.parquet.
_TASK_INDEX = {
    "index_columns": ["task"],
    "column_indexes": [],
    "columns": [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64",
         "numpy_type": "int64", "metadata": None},
        {"name": "task", "field_name": "task", "pandas_type": "unicode",
         "numpy_type": "object", "metadata": None},
    ],
    "pandas_version": "2.0.0",
}  # fmt: skip


def _told(layout: DatasetLayout) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(json.dumps(asdict(layout)))
    if not layout.flags:
        del told["flags"]  # as exports of before there were any have it
    return told


def flags_of(out: Path) -> tuple[str, ...]:
    """Columns of bool for an export: those it has, if it is there, else all."""
    place = out / DONE / "layout.json"
    return tuple(read_json(place).get("flags", ())) if place.exists() else FLAGS


def _path(pattern: str, episode: int, feature: str) -> str:
    chunk, file = divmod(episode, CHUNK)
    return pattern.format(
        chunk_index=chunk,
        file_index=file,
        episode_chunk=chunk,
        episode_index=episode,
        video_key=feature,
    )


def _vectors(values: np.ndarray) -> Any:
    import pyarrow as pa

    flat = pa.array(np.ascontiguousarray(values, np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _write(path: Path, content: Any) -> None:
    _replace(path, json.dumps(content, indent=2) + "\n")


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
