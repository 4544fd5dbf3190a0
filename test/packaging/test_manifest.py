"""package.xml is valid, in step with the code, and its keys exist for every distribution."""

import ast
import pathlib
import re

import pytest
from catkin_pkg.package import parse_package

import pi05_ros

ROOT = pathlib.Path(__file__).parents[2]

# Keys of rosdep's base.yaml/python.yaml (same on Ubuntu 22.04 and 24.04) that are not packages
# of the Humble, Jazzy and Kilted distributions.
SYSTEM_KEYS = {
    "python3-matplotlib",
    "python3-numpy",
    "python3-pil",
    "python3-pytest",
    "python3-rich",
    "python3-yaml",
}
# Released in Humble, Jazzy and Kilted alike.
ROS_PACKAGES = {
    "action_msgs",
    "ament_cmake",
    "ament_cmake_pytest",
    "ament_cmake_python",
    "builtin_interfaces",
    "diagnostic_msgs",
    "geometry_msgs",
    "launch",
    "launch_ros",
    "lifecycle_msgs",
    "rcl_interfaces",
    "rclpy",
    "rosgraph_msgs",
    "rosidl_default_generators",
    "rosidl_default_runtime",
    "sensor_msgs",
    "std_msgs",
    "std_srvs",
    "trajectory_msgs",
}


@pytest.fixture(scope="module")
def package():
    return parse_package(str(ROOT / "package.xml"))


def test_manifest_validates_without_warnings(package):
    warnings: list[str] = []
    package.validate(warnings=warnings)
    assert not warnings


def test_versions_and_license_agree(package):
    assert package.version == pi05_ros.__version__
    assert list(package.licenses) == ["Apache-2.0"]
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert f"## {pi05_ros.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_key_is_known_to_rosdep(package):
    keys = {
        dependency.name
        for group in ("buildtool_depends", "build_depends", "exec_depends", "test_depends")
        for dependency in getattr(package, group)
    }
    assert keys <= SYSTEM_KEYS | ROS_PACKAGES, keys - SYSTEM_KEYS - ROS_PACKAGES


def imported_modules(path: pathlib.Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
    return names


def test_imported_ros_packages_are_declared(package):
    declared = {d.name for d in [*package.exec_depends, *package.build_depends]}
    for path in [*(ROOT / "pi05_ros").rglob("*.py"), *(ROOT / "launch").glob("*.py")]:
        for name in imported_modules(path):
            top = name.split(".")[0]
            if top in ROS_PACKAGES:
                assert top in declared, f"{path.name} imports {top}"


def test_messages_are_all_generated():
    cmake = (ROOT / "CMakeLists.txt").read_text()
    listed = set(re.findall(r"msg/(\w+)\.msg", cmake))
    assert listed == {path.stem for path in (ROOT / "msg").glob("*.msg")}


def test_every_message_field_is_described():
    for path in (ROOT / "msg").glob("*.msg"):
        described = False
        for line in path.read_text().splitlines():
            if not line.strip():
                described = False
            elif line.startswith("#"):
                described = True
            else:
                assert described or "#" in line, f"{path.name}: {line}"


def test_readme_installs_what_comes_from_pip():
    """Package.xml leaves these to pip and points to the README's line."""
    (said,) = re.findall(r"<!-- (.*) come from pip: README", (ROOT / "package.xml").read_text())
    line = re.search(r"^pip install (torch .*?) +#", (ROOT / "README.md").read_text(), re.M)
    assert set(re.split(r", | and ", said)) <= set(line[1].split())


def test_hooks_and_lint_use_the_tools_that_are_pinned():
    pinned = {
        line.partition("==")[0] for line in (ROOT / "requirements/dev.txt").read_text().split()
    }
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    for tool in re.findall(r"entry: \.venv/bin/(\w+)", hooks):
        assert tool == "python" or tool in pinned, tool


def test_every_mark_is_given_and_declared():
    """Marks of test/conftest.py, of pyproject.toml and of `make test-fast` are the same."""
    given = set(re.findall(r'"(\w+)"[,)]', (ROOT / "test/conftest.py").read_text()))
    declared = set(re.findall(r'^  "(\w+): ', (ROOT / "pyproject.toml").read_text(), re.M))
    left_out = re.search(r'-m "not \((.*?)\)"', (ROOT / "scripts/test.sh").read_text())
    assert declared <= given
    assert set(left_out[1].split(" or ")) == declared


def test_the_demo_drives_the_arm_each_time():
    """Kept sessions of `pi05 eval` would make the second demo a table of the first."""
    (line,) = re.findall(r"pi05 eval --ros .*", (ROOT / "Makefile").read_text())
    assert "--no-resume" in line


def test_each_page_of_the_documentation_starts_with_what_it_is_for():
    for page in (ROOT / "docs").glob("*.md"):
        first = " ".join(page.read_text(encoding="utf-8").split("\n\n")[1].split())
        assert first.startswith("After this page you "), page.name
