"""What the doctor says of DDS security: switched off, half set up, open to others, complete."""

import pytest

from pi05_ros.doctor.checks import Level
from pi05_ros.doctor.security import FILES, security


@pytest.fixture
def keystore(tmp_path):
    """The files that `ros2 security` makes, without their contents."""
    for path in ("enclaves/pi05/policy", "enclaves/pi05/executor", "private"):
        (tmp_path / path).mkdir(parents=True)
    for enclave in ("policy", "executor"):
        for name in FILES:
            file = tmp_path / "enclaves/pi05" / enclave / name
            file.write_text("-")
            file.chmod(0o600)
    (tmp_path / "private" / "ca.key.pem").write_text("-")
    (tmp_path / "private" / "ca.key.pem").chmod(0o600)
    return tmp_path


def told(store, **changes):
    environment = {
        "ROS_SECURITY_ENABLE": "true", "ROS_SECURITY_STRATEGY": "Enforce",
        "ROS_SECURITY_KEYSTORE": str(store),
    }  # fmt: skip
    return security({**environment, **changes})


def test_a_complete_keystore_is_ok(keystore):
    (check,) = told(keystore)
    assert check.level is Level.OK
    assert "/pi05/executor, /pi05/policy" in check.detail


def test_off_is_said_with_what_it_means():
    (check,) = security({})
    assert check.level is Level.INFO
    assert "can send chunks, joint states and commands" in check.detail
    (check,) = security({"ROS_SECURITY_ENABLE": "True"})
    assert check.level is Level.WARN
    assert "only true counts" in check.detail


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({"ROS_SECURITY_STRATEGY": "Permissive"}, Level.WARN, "starts unprotected"),
        ({"ROS_SECURITY_KEYSTORE": ""}, Level.FAIL, "ROS_SECURITY_KEYSTORE is not set"),
        ({"ROS_SECURITY_KEYSTORE": "/nowhere"}, Level.FAIL, "is no keystore"),
        ({"ROS_SECURITY_ENCLAVE_OVERRIDE": "/pi05/other"}, Level.FAIL, "/pi05/other lacks key"),
    ],
)
def test_what_is_half_set_up_is_named(keystore, changes, level, words):
    (check,) = told(keystore, **changes)
    assert check.level is level
    assert words in check.detail
    assert check.fix


@pytest.mark.parametrize("file", ["enclaves/pi05/policy/key.pem", "private/ca.key.pem"])
def test_keys_that_others_may_read_are_named(keystore, file):
    (keystore / file).chmod(0o640)
    (check,) = told(keystore)
    assert check.level is Level.WARN
    assert check.fix == f"chmod 600 {keystore / file}"
    (keystore / "private").chmod(0o700)
    assert [c.level for c in told(keystore)] == (
        [Level.OK] if file.startswith("private") else [Level.WARN]
    )


def test_an_enclave_that_lacks_a_file_or_all_of_them(keystore):
    (keystore / "enclaves/pi05/policy/permissions.p7s").unlink()
    (check,) = told(keystore)
    assert (check.level, "lacks permissions.p7s" in check.detail) == (Level.FAIL, True)
    for file in (keystore / "enclaves").rglob("*.p*"):
        file.unlink()
    (check,) = told(keystore)
    assert (check.level, "has no enclave" in check.detail) == (Level.FAIL, True)
