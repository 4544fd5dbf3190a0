import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest

OPENPI = Path(__file__).parents[2] / ".cache" / "openpi"


@pytest.fixture(scope="session")
def openpi_client():
    """The unmodified openpi-client of PyPI, installed by scripts/setup_export.sh dev."""
    assert (OPENPI / "openpi_client").is_dir(), "run scripts/setup_export.sh dev"
    sys.path.insert(0, str(OPENPI))
    import openpi_client
    import openpi_client.msgpack_numpy
    import openpi_client.websocket_client_policy

    return openpi_client
