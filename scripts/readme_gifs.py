"""Make the pictures of README.md: the simulated arm, and what `pi05 view` shows of it.

    python scripts/readme_gifs.py [docs/images]

Needs the extras sim and view, and Chromium.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "test" / "shared")]
MOST_BYTES = 1_500_000
PLAY_S = 7.0


def main(argv: list[str]) -> int:
    """Write arm.gif and view.gif."""
    from view_page import open_page

    from pi05_ros.cli.main import main as pi05
    from pi05_ros.sim.arm.tasks import TASKS
    from pi05_ros.sim.arm.world import World
    from pi05_ros.sim.training.record import record_episode
    from pi05_ros.sim.training.shipped import CHECKPOINT

    out = Path(argv[0]) if argv else ROOT / "docs" / "images"
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        words = [
            "--seeds",
            "3:4",
            "--tasks",
            "pick_red",
            "--gif",
            "3",
            "--out",
            str(work / "eval"),
        ]
        if pi05(["eval", *words]) != 0:
            return 1
        film = next((work / "eval").rglob("*.gif"))
        with Image.open(film) as gif:
            frames = []
            for index in range(gif.n_frames):
                gif.seek(index)
                frames.append(gif.convert("RGB"))
            period_ms = int(gif.info.get("duration", 50))
        save(frames[::2], 2 * period_ms, out / "arm.gif")
        world = World()
        record_episode(world, TASKS["pick_red"], 3, work / "bag")
        world.close()
        options = ["--checkpoint", str(CHECKPOINT), "--robot", "sim_arm", "--offline", "--no-plot"]
        if pi05(["replay", str(work / "bag"), *options, "--out", str(work / "replay")]) != 0:
            return 1
        command = [sys.executable, "-m", "pi05_ros.cli.main", "view", str(work / "bag")]
        command += ["--chunks", str(work / "replay"), "--port", "0", "--speed", "0.5"]
        view = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert view.stdout is not None
        try:
            url = view.stdout.readline().split()[1]
            with open_page(url, work / "profile", film=True) as posted:
                while not posted.state.get("path"):
                    time.sleep(0.1)
                posted.frames.clear()
                time.sleep(PLAY_S)
                shots = [Image.open(io.BytesIO(data)).convert("RGB") for data in posted.frames]
        finally:
            view.kill()
            view.wait()
        save(shots, 200, out / "view.gif")
    return 0


def save(frames: list[Image.Image], period_ms: int, path: Path) -> None:
    """Write a GIF of at most `MOST_BYTES`: with fewer frames if need be."""
    while True:
        small = [frame.quantize(96, dither=Image.Dither.NONE) for frame in frames]
        small[0].save(
            path, save_all=True, append_images=small[1:], duration=period_ms, loop=0, optimize=True
        )
        size = path.stat().st_size
        if size <= MOST_BYTES or len(frames) < 4:
            print(f"{path}: {len(frames)} frames, {size / 1e6:.2f} MB")
            return
        frames, period_ms = frames[::2], 2 * period_ms


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
