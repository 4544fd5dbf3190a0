"""Where data files are found: source tree, ROS prefix, pip prefix."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

from pi05_ros import resources
from pi05_ros.errors import ResourceError


def installed_copy(prefix: Path):
    """The module as it would be in <prefix>/lib/pythonX.Y/site-packages."""
    place = prefix / "lib" / "python3.11" / "site-packages" / "pi05_ros"
    place.mkdir(parents=True)
    shutil.copy(resources.__file__, place / "resources.py")
    spec = importlib.util.spec_from_file_location("installed_resources", place / "resources.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def share(prefix: Path) -> Path:
    config = prefix / "share" / "pi05_ros" / "config"
    (config / "robots").mkdir(parents=True)
    return config


def test_source_tree_comes_first(monkeypatch, tmp_path):
    share(tmp_path)
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    root = Path(resources.__file__).resolve().parents[1]
    assert resources.config_dir() == root / "config"


def test_beside_the_installed_package(monkeypatch, tmp_path):
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    config = share(tmp_path)
    assert installed_copy(tmp_path).config_dir() == config


def test_ament_prefixes_and_pythons_prefix(monkeypatch, tmp_path):
    module = installed_copy(tmp_path / "elsewhere")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "python"))
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"{tmp_path / 'empty'}:{tmp_path / 'ros'}:")
    with pytest.raises(ResourceError, match=r"was not found; looked in: .*python"):
        module.config_dir()
    python = share(tmp_path / "python")
    assert module.config_dir() == python
    ros = share(tmp_path / "ros")
    assert module.config_dir() == ros
