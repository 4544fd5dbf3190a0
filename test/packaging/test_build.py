"""The package builds the ways people build it, and what they script against is then there."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def run(*words: object, cwd: pathlib.Path, **env: str) -> str:
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def without_this_build() -> dict[str, str]:
    """Environment of the virtual environment alone, without the overlay built by setup_env.sh."""
    here = str(ROOT / "build")
    keep = {}
    for name in ("AMENT_PREFIX_PATH", "CMAKE_PREFIX_PATH", "PYTHONPATH", "LD_LIBRARY_PATH"):
        parts = [p for p in os.environ.get(name, "").split(":") if p and not p.startswith(here)]
        keep[name] = ":".join(parts)
    return keep


CHECK = """
import os, pi05_ros, pi05_ros.msg, pi05_ros.ros.policy_node
from pi05_ros.resources import config_dir
assert (config_dir() / "robots" / "libero.yaml").is_file(), config_dir()
print(os.path.dirname(pi05_ros.__file__), pi05_ros.msg.ActionChunk().horizon)
"""


def move_build(source: pathlib.Path) -> None:
    """What setup_env.sh has compiled of the interfaces: compiled once, installed in several ways.

    Times of files stay, so that make compiles what is not of these sources. Without such a build,
    as with an installed ROS, everything is compiled.
    """
    prefixes = map(pathlib.Path, os.environ.get("AMENT_PREFIX_PATH", "").split(":"))
    made = next((p.parents[1] / "build" for p in prefixes if ROOT / "build" in p.parents), None)
    if made is None or not (made / "pi05_ros" / "CMakeCache.txt").is_file():
        return
    moved = source / "build"
    shutil.copytree(made, moved, symlinks=True)
    shutil.rmtree(moved / "pi05_ros" / "ament_cmake_python", ignore_errors=True)
    # Hashes of commands, which hold paths: another hash means made again.
    (moved / "pi05_ros" / "CMakeFiles" / "CMakeRuleHashes.txt").unlink(missing_ok=True)
    root = re.compile(re.escape(os.fsencode(ROOT)) + rb"(?=/(?!\.venv|build/)|[^\w./-]|$)", re.M)
    for path in [path for path in moved.rglob("*") if path.is_file() and not path.is_symlink()]:
        content, times = path.read_bytes(), path.stat()
        if os.fsencode(ROOT) in content and b"\0" not in content:
            content = content.replace(os.fsencode(made), os.fsencode(moved))
            path.write_bytes(root.sub(os.fsencode(source), content))
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the sources, because building in place leaves folders behind."""
    source = tmp_path_factory.mktemp("sources") / "src"
    files = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines()
    for name in files:
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy2(ROOT / name, target)
    move_build(source)
    return source


@pytest.mark.parametrize("option", ["--symlink-install", "--merge-install"])
def test_colcon(tmp_path, source, option):
    clean = without_this_build()
    # setup.py builds there, too: the interfaces are compiled once for all that install them.
    bases = ("--base-paths", source, "--build-base", source / "build")
    build = ("colcon", "--log-base", "log", "build", option, *bases)
    # Python as setup.py says it, so that nothing is generated again; colcon leaves OFF to us.
    symlinks = "ON" if option == "--symlink-install" else "OFF"
    arguments = ("-DBUILD_TESTING=OFF", f"-DPython3_EXECUTABLE={sys.executable}")
    arguments += (f"-DAMENT_CMAKE_SYMLINK_INSTALL={symlinks}",)
    run(*build, "--cmake-args", *arguments, cwd=tmp_path, **clean)
    prefix = tmp_path / "install" / ("" if option == "--merge-install" else "pi05_ros")
    for executable in ("policy_node", "pi05"):
        assert os.access(prefix / "lib" / "pi05_ros" / executable, os.X_OK)
    assert os.access(prefix / "bin" / "pi05", os.X_OK)
    share = prefix / "share" / "pi05_ros"
    for name in ("package.xml", "launch/policy.launch.py", "config/policy.yaml"):
        assert (share / name).is_file(), name
        assert (share / name).is_symlink() == (option == "--symlink-install"), name
    index = prefix / "share" / "ament_index" / "resource_index" / "packages" / "pi05_ros"
    assert index.is_file()
    setup = tmp_path / "install" / "local_setup.bash"
    where = run("bash", "-c", f"source {setup} && python -c '{CHECK}'", cwd=tmp_path, **clean)
    assert str(prefix) in where
    # Worker processes import what started them (`pi05 eval --workers 2`).
    imported = (
        "import runpy, sys; [runpy.run_path(p, run_name='__mp_main__') for p in sys.argv[1:]]"
    )
    executables = " ".join(map(str, (prefix / "lib" / "pi05_ros").iterdir()))
    run("bash", "-c", f'. {setup} && python -c "{imported}" {executables}', cwd=tmp_path, **clean)


def test_source_distribution_has_what_the_build_reads(tmp_path, source):
    build = "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"
    run(sys.executable, "-c", build, cwd=source, **without_this_build())
    (path,) = (source / "dist").glob("*.tar.gz")
    with tarfile.open(path) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    files = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines()
    parts = ("pi05_ros/", "config/", "launch/", "msg/", "setup.", "pyproject", "package.xml")
    needed = {name for name in files if name.startswith((*parts, "CMakeLists", "LICENSE"))}
    assert needed <= inside, needed - inside


def test_pip_installation_with_and_without_ros(tmp_path, source):
    """The wheel made without ROS is the library and command; with ROS it has messages as well."""

    def wheel(folder: str, **env: str) -> list[str]:
        options = ("--no-build-isolation", "--no-deps", "--no-cache-dir", "-w", tmp_path / folder)
        run(sys.executable, "-m", "pip", "wheel", ".", *options, cwd=source, **env)
        (path,) = (tmp_path / folder).glob("*.whl")
        return run(sys.executable, "-m", "zipfile", "-l", path, cwd=tmp_path).splitlines()

    clean = without_this_build()
    plain = "\n".join(wheel("plain", **{**clean, "AMENT_PREFIX_PATH": ""}))
    assert "pi05_ros/policy/policy.py" in plain
    assert "share/pi05_ros/config/robots/libero.yaml" in plain
    assert "pi05_ros/msg/__init__.py" not in plain
    full = "\n".join(wheel("full", **clean))
    assert "pi05_ros/msg/_action_chunk.py" in full
    assert "lib/pi05_ros/policy_node" in full
    assert "share/ament_index/resource_index/packages/pi05_ros" in full
