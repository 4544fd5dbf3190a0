"""A small policy and a small bag, made once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # bags.py

from bags import write_bag

from pi05_ros.policy import Policy
from pi05_ros.runtime.parameters import PolicyParameters


@pytest.fixture(scope="session")
def policy() -> Policy:
    torch.set_num_threads(1)
    return Policy.load("random:tiny", threads=1)


@pytest.fixture(scope="session")
def parameters() -> PolicyParameters:
    return PolicyParameters.from_values({"checkpoint": "random:tiny", "threads": 1})


@pytest.fixture(scope="session")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bag(tmp_path_factory.mktemp("bags") / "bag")
