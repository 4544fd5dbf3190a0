"""Files of a LeRobot dataset, versions 3.0 and 2.1: episodes, tables, frames of their videos.

Written after the format; the `lerobot` package is not needed. Needs pyarrow, and av where images
are videos.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pi05_ros.bags.bag import BagError
from pi05_ros.small_files import FileError, parse_json, read_json, read_text, require_regular

INFO = "meta/info.json"
OURS = "meta/episodes_done/layout.json"
"""Only `pi05 dataset` writes it: the values of such a dataset are those of the robot."""
MAX_META = 256 * 2**20
_EPISODE = re.compile(r"episode_(\d{1,9})\Z")


@dataclass(frozen=True)
class VideoPart:
    """Where the frames of one episode and camera are: file, and the time of the first, seconds."""

    path: Path
    from_s: float


@dataclass(frozen=True)
class EpisodeFiles:
    """One episode.

    Attributes:
        index: of the episode.
        length: rows.
        table: its Parquet file, which may hold other episodes as well.
        videos: by image feature.

    """

    index: int
    length: int
    table: Path
    videos: dict[str, VideoPart] = field(default_factory=dict)


def split_episode(path: Path) -> tuple[Path, int | None]:
    """A dataset's folder and, for DATASET/episode_N, that N."""
    match = _EPISODE.match(path.name)
    if match and not path.exists() and (path.parent / INFO).is_file():
        return path.parent, int(match[1])
    return path, None


def is_dataset(path: Path) -> bool:
    """Whether a path is a LeRobot dataset, or one episode of it as DATASET/episode_N."""
    return (split_episode(path)[0] / INFO).is_file()


class LeRobotFiles:
    """A dataset opened for reading.

    Args:
        root: its folder.

    Attributes:
        version: "3.0" or "2.1" ("2.0" reads as 2.1).
        fps: rows per second.
        features: of info.json.
        tasks: text by task_index.
        episodes: in order.
        ours: whether `pi05 dataset` wrote it.

    Raises:
        BagError: not such a dataset, or a part of it is missing or damaged.

    """

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            info = read_json(root / INFO)
        except FileError as error:
            raise BagError(str(error)) from error
        version = str(_get(info, "codebase_version", str, root)).removeprefix("v")
        if version not in ("3.0", "2.1", "2.0"):
            raise BagError(f"{root / INFO}: version {version!r:.20}; accepted: 3.0, 2.1, 2.0")
        self.version = "3.0" if version == "3.0" else "2.1"
        self.fps = float(_get(info, "fps", (int, float), root))
        if not 0.1 <= self.fps <= 1000:
            raise BagError(f"{root / INFO}: fps is {self.fps:g}; accepted: 0.1 to 1000")
        self.features: Mapping[str, Any] = _get(info, "features", dict, root)
        self._info = info
        self.ours = (root / OURS).is_file()
        self.images = tuple(
            name
            for name, value in self.features.items()
            if isinstance(value, dict) and value.get("dtype") in ("video", "image")
        )
        self._tables: dict[Path, Any] = {}
        if self.version == "3.0":
            self.tasks = self._tasks_table()
            self.episodes = tuple(self._episodes_table())
        else:
            self.tasks = {
                int(row["task_index"]): str(row["task"]) for row in self._lines("meta/tasks.jsonl")
            }
            self.episodes = tuple(self._episode_lines())
        if not self.episodes:
            raise BagError(f"{root} has no episodes")

    def names(self, feature: str) -> tuple[str, ...]:
        """Names of the columns of a vector; numbers if the dataset has none."""
        told = self.features.get(feature)
        if not isinstance(told, dict):
            have = ", ".join(self.features)
            raise BagError(f"{self.root} has no feature {feature}; it has {have}")
        names = told.get("names")
        if isinstance(names, dict):  # {"motors": [...]}
            names = [name for part in names.values() if isinstance(part, list) for name in part]
        if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
        shape = told.get("shape")
        count = shape[0] if isinstance(shape, list) and len(shape) == 1 else 0
        return tuple(str(index) for index in range(int(count)))

    def columns(self, episode: EpisodeFiles, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Numeric columns of an episode by name, each ``[T]`` or ``[T, n]``."""
        table = self._rows(episode, names)
        found = {}
        for name in names:
            values = np.asarray(table[name].to_pylist(), np.float64)
            if not np.isfinite(values).all():
                raise BagError(f"{episode.table}: {name} of episode {episode.index} is not finite")
            found[name] = values
        return found

    def frames(self, episode: EpisodeFiles, feature: str, times_s: np.ndarray) -> Iterator[Any]:
        """RGB images ``[H, W, 3]`` uint8 at the times of the rows, seconds into the episode."""
        if feature in episode.videos:
            return self._video(episode.videos[feature], times_s)
        return self._pictures(episode, feature)

    # -- metadata ---------------------------------------------------------------------------

    def _tasks_table(self) -> dict[int, str]:
        rows = self._read(self.root / "meta" / "tasks.parquet").to_pylist()
        texts = ("task", "__index_level_0__")  # pandas stores the texts as an index
        found = {}
        for row in rows:
            text = next((row[name] for name in texts if name in row), None)
            if text is None or "task_index" not in row:
                raise BagError(f"{self.root}/meta/tasks.parquet has no tasks with task_index")
            found[int(row["task_index"])] = str(text)
        return found

    def _episodes_table(self) -> Iterator[EpisodeFiles]:
        pattern = str(_get(self._info, "data_path", str, self.root))
        video = self._info.get("video_path")
        for path in sorted((self.root / "meta" / "episodes").glob("chunk-*/file-*.parquet")):
            table = self._read(path)
            wanted = [name for name in table.column_names if not name.startswith("stats/")]
            for row in table.select(wanted).to_pylist():
                try:
                    videos = {
                        name: VideoPart(
                            self._inside(
                                str(video),
                                video_key=name,
                                chunk_index=row[f"videos/{name}/chunk_index"],
                                file_index=row[f"videos/{name}/file_index"],
                            ),
                            float(row[f"videos/{name}/from_timestamp"]),
                        )
                        for name in self.images
                        if self.features[name]["dtype"] == "video"
                    }
                    table_path = self._inside(
                        pattern,
                        chunk_index=row["data/chunk_index"],
                        file_index=row["data/file_index"],
                    )
                    index, length = int(row["episode_index"]), int(row["length"])
                except (KeyError, TypeError, ValueError) as error:
                    raise BagError(f"{path}: episode without {error}") from error
                yield EpisodeFiles(index, length, table_path, videos)

    def _episode_lines(self) -> Iterator[EpisodeFiles]:
        size = int(self._info.get("chunks_size") or 1000)
        pattern = str(_get(self._info, "data_path", str, self.root))
        video = str(self._info.get("video_path"))
        for row in self._lines("meta/episodes.jsonl"):
            index = int(row["episode_index"])
            place = {"episode_chunk": index // size, "episode_index": index}
            videos = {
                name: VideoPart(self._inside(video, video_key=name, **place), 0.0)
                for name in self.images
                if self.features[name]["dtype"] == "video"
            }
            yield EpisodeFiles(index, int(row["length"]), self._inside(pattern, **place), videos)

    def _lines(self, name: str) -> Iterator[dict[str, Any]]:
        path = self.root / name
        try:
            text = read_text(path, MAX_META)
            for number, line in enumerate(text.splitlines(), 1):
                if line.strip():
                    row = parse_json(line, f"{path}:{number}")
                    if not isinstance(row, dict):
                        raise BagError(f"{path}:{number} is no object")
                    yield row
        except FileError as error:
            raise BagError(str(error)) from error

    def _inside(self, pattern: str, **values: Any) -> Path:
        """A path of info.json, which must stay inside the dataset."""
        try:
            path = self.root / pattern.format(**values)
        except (KeyError, IndexError, ValueError) as error:
            raise BagError(f"{self.root / INFO}: path {pattern!r:.80}: {error!r}") from error
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise BagError(f"{self.root / INFO}: path {pattern!r:.80} leads out of the dataset")
        return path

    # -- data -------------------------------------------------------------------------------

    def _read(self, path: Path) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            require_regular(path)
            return pq.read_table(path)
        except (FileError, OSError, pa.ArrowException) as error:
            raise BagError(f"{path} cannot be read: {error}") from error

    def _rows(self, episode: EpisodeFiles, names: tuple[str, ...]) -> Any:
        import pyarrow.compute as pc

        if episode.table not in self._tables:
            self._tables = {episode.table: self._read(episode.table)}  # one at a time
        table = self._tables[episode.table]
        needed = {*names, "episode_index", "frame_index"}
        lacking = sorted(needed - set(table.column_names))
        if lacking:
            raise BagError(f"{episode.table} has no column {', '.join(lacking)}")
        found = table.filter(pc.equal(table["episode_index"], episode.index))
        if found.num_rows != episode.length:
            raise BagError(
                f"{episode.table} has {found.num_rows} rows of episode {episode.index}; the "
                f"metadata says {episode.length}"
            )
        return found.sort_by("frame_index").select(list(dict.fromkeys(names)))

    def _video(self, part: VideoPart, times_s: np.ndarray) -> Iterator[np.ndarray]:
        import av

        try:
            require_regular(part.path)
            with av.open(str(part.path)) as container:
                stream = container.streams.video[0]
                stream.thread_count = 1
                base = float(stream.time_base or 1 / 90_000)
                container.seek(round((part.from_s + float(times_s[0])) / base), stream=stream)
                frames = container.decode(stream)
                now, ahead = next(frames, None), next(frames, None)
                for time_s in times_s + part.from_s:
                    while (
                        ahead is not None
                        and now is not None
                        and abs(ahead.time - time_s) < abs(now.time - time_s)
                    ):
                        now, ahead = ahead, next(frames, None)
                    if now is None or abs(now.time - time_s) > 0.5 / self.fps:
                        raise BagError(f"{part.path} has no frame at {time_s:.3f} s")
                    yield now.to_ndarray(format="rgb24")
        except (FileError, OSError, IndexError, av.FFmpegError) as error:
            raise BagError(f"{part.path} cannot be read: {error}") from error

    def _pictures(self, episode: EpisodeFiles, feature: str) -> Iterator[np.ndarray]:
        from PIL import Image, UnidentifiedImageError

        for cell in self._rows(episode, (feature,))[feature].to_pylist():
            try:
                data = cell.get("bytes") if isinstance(cell, dict) else None
                if data is None:
                    name = cell["path"] if isinstance(cell, dict) else str(cell)
                    path = self._inside(str(name).replace("{", "{{").replace("}", "}}"))
                    data = path.read_bytes()
                with Image.open(io.BytesIO(data)) as image:
                    yield np.asarray(image.convert("RGB"))
            except (KeyError, TypeError, OSError, UnidentifiedImageError) as error:
                raise BagError(f"{episode.table}: an image of {feature}: {error}") from error


def _get(info: Any, key: str, kind: Any, root: Path) -> Any:
    value = info.get(key) if isinstance(info, dict) else None
    if not isinstance(value, kind):
        raise BagError(f"{root / INFO}: {key} is {value!r:.60}")
    return value
