"""Helper of pack_for_gpu.sh: the tree that is packed, from a ROS environment and an installation.

python scripts/pack_tree.py exports VENV    # CMake files name this Python
python scripts/pack_tree.py tree WORK       # WORK/{venv,site,install} -> WORK/tree
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

BUILD_TOOLS = re.compile(
    r"(ament_(?!index)|colcon|pip|setuptools|wheel|pkg_resources|numpy|_distutils|catkin|empy"
    r"|rosidl_(generator_(c|cpp)$|typesupport|cmake|default|core)|pytest|_pytest|docutils|distlib"
    r"|coverage|hf_xet|tzdata|notify2|argcomplete|iniconfig|pluggy)"
)
"""Packages and metadata that are for building only, or that the other machine has itself."""
SYSTEM_LIBRARIES = re.compile(
    r"(ld-linux|lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+|util|z|python3[0-9.]*)\.so)"
)


def exports(venv: Path) -> None:
    """Point the message wheels' CMake files at this Python instead of their build machine's."""
    paths = sysconfig.get_paths()
    tag = "/opt/python/cp312-cp312"
    for path in (venv / "share").rglob("*.cmake"):
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        if tag in text:
            text = re.sub(re.escape(tag) + r"/include/python[0-9.]*", paths["include"], text)
            text = re.sub(
                re.escape(tag) + r"/lib/python[0-9.]*/site-packages", paths["purelib"], text
            )
            path.write_text(text, encoding="utf-8", errors="surrogateescape")


def dynamic(path: Path) -> tuple[str, set[str]]:
    """Name by which a shared library is asked for, and the libraries it asks for itself."""
    shown = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=False)
    name = re.search(r"SONAME.*\[(.*)\]", shown.stdout)
    return (name[1] if name else path.name), set(re.findall(r"NEEDED.*\[(.*)\]", shown.stdout))


def tree(work: Path) -> None:
    """Collect libraries, share/ and Python packages; fails if a library would be missing."""
    venv, install, target = work / "venv", work / "install", work / "tree"
    packages = venv / "lib/python3.12/site-packages"
    shutil.rmtree(target, ignore_errors=True)
    (target / "lib").mkdir(parents=True)
    libraries = [
        *venv.glob("lib/*.so*"),
        *packages.glob("ros_*.libs/*"),
        *install.glob("lib/*.so"),
    ]
    for path in libraries:
        name = dynamic(path)[0]
        shutil.copy2(path, target / "lib" / name)
        if path.name != name and path.suffix == ".so":  # opened by this name, as typesupports are
            (target / "lib" / path.name).unlink(missing_ok=True)
            (target / "lib" / path.name).symlink_to(name)
    for shared in (venv / "share", install / "share"):
        shutil.copytree(
            shared, target / "share", dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("cmake", "environment", "*.sh", "*.bash", "*.idl"),
        )  # fmt: skip
    unwanted = shutil.ignore_patterns("*.c", "__pycache__", "test", "tests", "*.libs")
    for source in (packages, work / "site"):
        for path in source.iterdir():
            if BUILD_TOOLS.match(path.name) or path.name.endswith((".libs", ".pth", ".dist-info")):
                continue
            if path.is_dir():
                shutil.copytree(
                    path, target / "site" / path.name, dirs_exist_ok=True, ignore=unwanted
                )
            elif path.suffix in (".py", ".so"):
                shutil.copy2(path, target / "site" / path.name)
    for path in (work / "site").glob("*.libs"):  # found by the extension modules beside them
        shutil.copytree(path, target / "site" / path.name)
    shutil.copytree(
        install / "lib/python3.12/site-packages/pi05_ros", target / "site/pi05_ros",
        ignore=shutil.ignore_patterns("*.c", "__pycache__"),
    )  # fmt: skip
    # The simulated arm's policy: MuJoCo is not packed either.
    (target / "site/pi05_ros/sim/checkpoint/model.safetensors").unlink(missing_ok=True)
    check(target)


def check(target: Path) -> None:
    """Exit naming the libraries that something asks for and nobody brings."""
    there = {path.name for path in target.rglob("*.so*")}
    missing: dict[str, str] = {}
    for path in target.rglob("*.so*"):
        for name in dynamic(path)[1]:
            if name not in there and not SYSTEM_LIBRARIES.match(name):
                missing[name] = path.name
    if missing:
        lines = "\n".join(f"  {name}, for {user}" for name, user in sorted(missing.items()))
        print(f"not packed, and perhaps not there either:\n{lines}", file=sys.stderr)


if __name__ == "__main__":
    {"exports": exports, "tree": tree}[sys.argv[1]](Path(sys.argv[2]).resolve())
