"""Paths; like the original it asks on the terminal when there is no config.yaml."""

import os

import yaml

_folder = os.environ.get("LIBERO_CONFIG_PATH", os.path.expanduser("~/.libero"))
_file = os.path.join(_folder, "config.yaml")
if not os.path.exists(_file):
    input("Do you want to specify a custom path for the dataset folder? (Y/N): ")


def get_libero_path(query_key):
    """Path from the configuration file."""
    with open(_file) as file:
        return yaml.safe_load(file)[query_key]


def get_assets_path():
    """Folder of meshes and textures; the original downloads them when they are not there."""
    return os.environ.get("STAND_IN_ASSETS", os.path.dirname(__file__))
