"""The cache folder, and that nobody else can put machine code into it."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest

from pi05_ros.backends import BackendError, cache
from pi05_ros.backends.cuda.hopper import compile as compiler


@pytest.fixture
def root(monkeypatch, tmp_path):
    """The cache of a user; what a process without one gets lies beside it."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv(cache.TRITON_VARIABLE, "")  # as good as unset, and restored
    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path / "temporary"))
    cache._folder_of_this_process.cache_clear()
    yield tmp_path / "xdg" / "pi05_ros"
    cache._folder_of_this_process.cache_clear()


@pytest.fixture(params=[0o000, 0o002, 0o022, 0o077, 0o177])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def planted(folder, name="kernel.cubin"):
    """A file that is right by its own checksum."""
    folder.mkdir(parents=True, exist_ok=True)
    image = b"somebody else's code"
    path = folder / name
    path.write_bytes(hashlib.sha256(image).hexdigest().encode() + b"\n" + image)
    return path


def test_the_cache_follows_xdg_where_that_is_absolute(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder("scales") == tmp_path / "pi05_ros" / "scales"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache.cache_folder("x") == tmp_path / "home/.cache/pi05_ros/x"


def test_a_user_without_a_home_gets_a_folder_of_the_process(monkeypatch, tmp_path):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path))
    cache._folder_of_this_process.cache_clear()
    try:
        folder = cache.cache_folder("kernels")
        assert folder.parent.parent == tmp_path
        assert folder.parent.stat().st_mode & 0o777 == 0o700
        assert cache.cache_folder("kernels") == folder
    finally:
        cache._folder_of_this_process.cache_clear()


def test_whatever_the_umask_all_folders_are_ours_alone(root, umask):
    for folder in (cache.code_folder("kernels"), cache.private_triton_cache()):
        assert folder.parent == root
    cache.private_folder(root / "trt" / "model")
    for path in (root.parent, root, *root.rglob("*")):
        assert mode(path) == 0o700, path


@pytest.mark.parametrize("bits", [0o777, 0o770, 0o720, 0o702, 0o1777])
def test_code_in_a_folder_that_others_may_write_is_not_loaded(root, bits, caplog):
    path = planted(root / "kernels")
    root.chmod(0o700)
    (root / "kernels").chmod(bits)
    assert compiler.read_cached(path) is None
    folder = cache.code_folder("kernels")
    assert folder == root / "kernels"
    assert mode(folder) == 0o700
    assert not list(folder.iterdir())
    (aside,) = root.glob("kernels.untrusted-*")
    assert (aside / path.name).is_file()  # nothing is lost
    assert "others may write into" in caplog.text
    assert "moved to" in caplog.text


def test_a_cache_of_ours_that_others_may_write_is_closed(root, caplog):
    root.mkdir(parents=True)
    root.chmod(0o777)
    cache.code_folder("kernels")
    assert mode(root) == 0o755
    assert "closed to them" in caplog.text


def test_a_cache_of_somebody_else_is_not_used(root, monkeypatch, caplog):
    path = planted(root / "kernels")
    monkeypatch.setattr("os.getuid", lambda: 12345)
    assert compiler.read_cached(path) is None
    with pytest.raises(cache.NotPrivateError, match="belongs to another user"):
        cache.private_folder(root)
    with pytest.raises(BackendError):  # the folder of this process is not of user 12345 either
        cache.code_folder("kernels")
    assert path.is_file()
    assert "compiled code is not kept" in caplog.text


def test_where_the_cache_cannot_be_made_code_is_kept_for_the_process(root, caplog):
    root.parent.mkdir()
    root.write_text("a file in the way")
    folder = cache.code_folder("kernels")
    assert folder.parent.parent.name == "temporary"
    assert mode(folder) == mode(folder.parent) == 0o700
    assert cache.code_folder("kernels") == folder
    assert "compiled code is not kept" in caplog.text


@pytest.mark.parametrize("bits", [0o602, 0o620, 0o666])
def test_a_file_that_others_may_write_is_not_loaded(root, bits):
    path = planted(cache.code_folder("kernels"))
    path.chmod(0o600)
    assert compiler.read_cached(path) == b"somebody else's code"
    path.chmod(bits)
    assert compiler.read_cached(path) is None


def test_links_and_pipes_in_place_of_a_file_are_not_loaded(root, tmp_path):
    folder = cache.code_folder("kernels")
    elsewhere = planted(tmp_path / "elsewhere")
    (folder / "link.cubin").symlink_to(elsewhere)
    os.mkfifo(folder / "pipe.cubin", 0o600)
    for name in ("link.cubin", "pipe.cubin", "missing.cubin"):
        assert compiler.read_cached(folder / name) is None


def test_a_huge_file_is_not_read(root):
    path = cache.code_folder("kernels") / "kernel.cubin"
    with path.open("wb") as file:
        file.truncate(2**40)  # takes no room on the disk
    assert compiler.read_cached(path) is None


def test_a_cache_may_lie_on_another_disk_of_ours(root, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir(mode=0o700)
    root.parent.mkdir()
    root.symlink_to(disk)
    assert cache.code_folder("kernels") == root / "kernels"
    assert (disk / "kernels").is_dir()


@pytest.mark.parametrize("bits", [0o700, 0o755])
def test_triton_s_own_folder_is_kept_where_it_is_private(root, bits, tmp_path, monkeypatch):
    given = tmp_path / "triton"
    given.mkdir()
    given.chmod(bits)
    monkeypatch.setenv(cache.TRITON_VARIABLE, str(given))
    assert cache.private_triton_cache() == given
    assert os.environ[cache.TRITON_VARIABLE] == str(given)


def test_triton_s_own_folder_is_not_used_where_others_may_write(
    root, tmp_path, monkeypatch, caplog
):
    given = tmp_path / "triton"
    given.mkdir()
    given.chmod(0o777)
    monkeypatch.setenv(cache.TRITON_VARIABLE, str(given))
    assert cache.private_triton_cache() == root / "triton"
    assert os.environ[cache.TRITON_VARIABLE] == str(root / "triton")
    assert "TRITON_CACHE_DIR is not used: others may write into" in caplog.text
