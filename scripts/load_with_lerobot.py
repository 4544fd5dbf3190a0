"""Loads an export of `pi05 dataset` with LeRobot itself, videos included, and compares it.

    python -m venv /tmp/lerobot && /tmp/lerobot/bin/pip install lerobot==0.4.4
    pi05 dataset RECORDINGS --robot my_arm.yaml --out datasets/push
    /tmp/lerobot/bin/python scripts/load_with_lerobot.py datasets/push

LeRobot pins torch and brings a torchvision of its own, so it needs an environment of its own; this
file imports nothing of the package. Backend torchcodec needs FFmpeg's shared libraries (Debian:
ffmpeg); without them it says so, and pyav is tried. Exit code 1 if a check fails, or if no backend
works.

Checked are: every row of the tables against what LeRobot returns, time stamps, every frame against
the same frame decoded by `av` alone, chunks by delta_timestamps, one episode alone, a batch of a
DataLoader, and that there are the quantiles by which LeRobot's pi05 normalizes.
"""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

HORIZON = 16
WORST_DB = 30.0
"""Peak signal to noise ratio of two decoders of one video."""


def check(dataset: Any, make: Any, root: Path) -> dict[str, float]:
    """Compare one loaded dataset.

    Raises:
        AssertionError: something differs.

    """
    import torch

    columns = dataset.hf_dataset.with_format("numpy")
    episodes, stamps = np.asarray(columns["episode_index"]), np.asarray(columns["timestamp"])
    episodes, stamps = episodes.ravel(), stamps.ravel()
    for episode in np.unique(episodes):
        steps = np.diff(stamps[episodes == episode])
        assert (abs(steps - 1 / dataset.fps) < 1e-4).all(), f"time stamps of episode {episode}"
    worst = np.inf
    tables = {name: np.stack(list(columns[name])) for name in ("observation.state", "action")}
    for episode in np.unique(episodes):
        rows = np.flatnonzero(episodes == episode)
        videos = {
            key: frames(root, dataset, int(episode), key) for key in dataset.meta.camera_keys
        }
        for place, row in enumerate(rows):
            item = dataset[int(row)]
            for name, values in tables.items():
                assert np.array_equal(item[name].numpy(), values[row]), f"{name} of row {row}"
            for key, images in videos.items():
                got = 255 * item[key].numpy().transpose(1, 2, 0).astype(np.float64)
                off = max(float(((got - images[place]) ** 2).mean()), 1e-9)
                worst = min(worst, 10 * np.log10(255**2 / off))
    assert worst > WORST_DB, f"a frame is off: {worst:.1f} dB"

    ahead = [k / dataset.fps for k in range(HORIZON)]
    chunked = make(
        delta_timestamps={"action": ahead, "observation.state": [-1 / dataset.fps, 0.0]}
    )
    end = int(np.flatnonzero(episodes == episodes[0])[-1]) + 1
    first = chunked[0]
    count = min(HORIZON, end)
    assert np.array_equal(first["action"].numpy()[:count], tables["action"][:count])
    assert bool(chunked[end - 1]["action_is_pad"].numpy()[1:].all())
    last = int(episodes.max())
    assert len(make(episodes=[last])) == int((episodes == last).sum())
    batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=4, shuffle=True)))
    assert batch["action"].shape[1:] == tables["action"].shape[1:]
    for name in tables:
        stats = dataset.meta.stats[name]
        assert {"q01", "q99"} <= set(stats), f"no quantiles of {name}"
        low, high = stats["q01"], stats["q99"]
        assert (np.asarray(high) >= np.asarray(low)).all(), f"quantiles of {name}"
    return {"rows": len(dataset), "episodes": dataset.num_episodes, "worst_db": worst}


def frames(root: Path, dataset: Any, episode: int, key: str) -> np.ndarray:
    """All frames of an episode's video, decoded by av alone ``[T, H, W, 3]``."""
    import av

    path = root / dataset.meta.get_video_file_path(episode, key)
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def main() -> int:
    """Load with every backend."""
    parser = argparse.ArgumentParser(description="load an export with LeRobot and compare")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--backends", default="torchcodec,pyav")
    args = parser.parse_args()
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    for package in ("lerobot", "torch", "torchvision", "torchcodec", "av"):
        try:
            print(f"{package} {version(package)}")
        except PackageNotFoundError:
            print(f"{package}: not there")
    print(f"Python {sys.version.split()[0]}")
    worked, failed = 0, 0
    for backend in args.backends.split(","):

        def make(backend: str = backend, **options: Any) -> Any:
            return LeRobotDataset(
                f"local/{args.dataset.name}", root=args.dataset, video_backend=backend, **options
            )

        try:
            found = check(make(), make, args.dataset)
        except AssertionError as error:
            print(f"{backend}: FAILED: {error}")
            failed += 1
        except (ImportError, OSError, RuntimeError) as error:
            print(f"{backend}: does not work here: {str(error).splitlines()[0]}")
        else:
            print(f"{backend}: {found['episodes']} episodes, {found['rows']} rows, "
                  f"worst frame {found['worst_db']:.1f} dB")  # fmt: skip
            worked += 1
    return 0 if worked and not failed else 1


if __name__ == "__main__":
    raise SystemExit(main())
