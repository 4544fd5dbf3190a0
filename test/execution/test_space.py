"""Space: what the arm must not touch, measured with kinematics and distances of the tests."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("pinocchio")
pytest.importorskip("coal")

from pi05_ros.bench.space_arms import SphereArms
from pi05_ros.bench.space_episodes import VARIANTS, run_episode
from pi05_ros.execution.executor import (
    FOLLOWING,
    HOLDING,
    TELEOPERATED,
    Executor,
    ExecutorSettings,
)
from pi05_ros.execution.limits import JointLimits
from pi05_ros.execution.space.make_guard import make_guard
from pi05_ros.execution.space.scene import Scene
from pi05_ros.execution.space.space_file import SpaceError, read_space, space_from_mapping
from pi05_ros.execution.space.space_guard import SpaceGuard
from pi05_ros.execution.strategies import make_strategy
from pi05_ros.execution.timed_chunk import TimedChunk

STEP = 50_000_000
DT = 0.02
SLIDER = """<robot name="slider"><link name="rail"/>
<link name="cart"><collision><geometry>{shape}</geometry></collision></link>
<joint name="slide" type="prismatic"><parent link="rail"/><child link="cart"/><axis xyz="1 0 0"/>
<limit lower="-2" upper="2" velocity="1" effort="1"/></joint></robot>"""
SLIDE = JointLimits(("slide",), [-2], [2], [1.0], [4.0])
WALL = {"name": "wall", "normal": [-1, 0, 0], "offset_m": -1.0}
BALL = '<sphere radius="0.1"/>'


def scene(urdf, joints, **space):
    return Scene(urdf, joints, space_from_mapping({"space": space}))


class Slider:
    """A cart on a rail that chunks drive to a place; the wall is at x = 1."""

    def __init__(self, start=0.0, **space):
        space = {"planes": [WALL], "stop_m": 0.05, "margin_m": 0.3, **space}
        spec = space_from_mapping({"space": space})
        guard = SpaceGuard(Scene(SLIDER.format(shape=BALL), ["slide"], spec), spec, [0], DT)
        self.core = Executor(SLIDE, make_strategy("rtc"), ExecutorSettings(period_s=DT), guard)
        self.place, self.k, self.path = np.array([start]), 0, [start]

    def drive(self, goal, ticks, speed=0.8):
        for _ in range(ticks):
            now = round(self.k * DT * 1e9)
            self.core.measure(self.place, now)
            if self.k % 5 == 0:
                steps = np.arange(20)[:, None] * 0.05 * speed
                rows = self.place + np.clip(goal - self.place, -steps, steps)
                self.core.offer(TimedChunk(now, STEP, rows, "p", self.k), now)
            command = self.core.tick(now)
            if command.positions is not None:
                self.place = command.positions
            self.path.append(float(self.place[0]))
            self.k += 1
        return command


def test_it_stops_before_the_wall_and_says_which_pair_and_where():
    slider = Slider()
    command = slider.drive(2.0, 200)
    assert command.mode == HOLDING
    assert "cart would touch wall" in command.reason
    assert "in rail" in command.reason
    assert 0.84 < max(slider.path) <= 0.85 + 1e-9
    report = slider.core.space
    assert report.pair == ("cart", "wall")
    assert report.distance == pytest.approx(0.05, abs=0.01)
    assert report.at == pytest.approx((0.97, 0, 0), abs=0.02)
    assert report.held == command.reason
    speeds = np.diff(slider.path) / DT
    near = np.array(slider.path[:-1]) > 0.8
    assert speeds.max() > 0.7
    assert speeds[near].max() < 0.4  # it slowed down in the margin
    assert slider.drive(0.0, 100).mode == FOLLOWING  # and may leave
    assert slider.path[-1] < 0.2


@pytest.mark.parametrize("start", [0.88, 0.95, 1.2])
def test_from_inside_it_may_only_move_out(start):
    slider = Slider(start)
    command = slider.drive(2.0, 20)
    assert slider.path[-1] == start
    assert command.mode == HOLDING
    assert "cart may only move away from wall" in command.reason
    assert slider.drive(0.3, 200).mode == FOLLOWING
    inside = np.array(slider.path[:-1]) > 0.85
    assert (np.diff(slider.path)[inside] <= 1e-9).all()
    assert slider.path[-1] == pytest.approx(0.3, abs=0.01)
    slider.drive(2.0, 200)
    assert slider.path[-1] <= 0.85 + 1e-9


def test_teleoperation_stops_and_previews_keep_clear_too():
    slider = Slider()
    slider.drive(0.7, 40, speed=1.0)
    for _ in range(100):
        now = round(slider.k * DT * 1e9)
        slider.core.measure(slider.place, now)
        slider.core.teleop.offer(["slide"], [1.9], now)
        command = slider.core.tick(now)
        slider.place = command.positions
        planned = slider.core.preview(1.0)
        assert planned[0].max() <= 0.85 + 1e-9
        slider.k += 1
    assert command.mode == TELEOPERATED
    assert "would touch wall" in command.reason
    slider.core.teleop.held = False
    slider.drive(2.0, 50)
    assert slider.core.preview(1.0)[0].max() <= 0.85 + 1e-9
    slider.core.stop("operator")
    slider.drive(2.0, 5)
    assert max(slider.path) <= 0.85 + 1e-9


def test_the_tool_keeps_its_speed():
    slider = Slider(planes=[], tool={"frame": "cart", "max_speed_m_per_s": 0.3})
    slider.drive(1.5, 200)
    speeds = np.diff(slider.path) / DT
    assert 0.25 < speeds.max() <= 0.3 + 1e-9


@pytest.mark.parametrize("arms", [SphereArms(7), SphereArms(14, 2)], ids=["7", "14"])
@pytest.mark.parametrize("name", VARIANTS)
def test_whatever_is_sent_nothing_touches_and_no_limit_is_exceeded(name, arms):
    if name == "ruckig":
        pytest.importorskip("ruckig")
    seen = run_episode(arms, 100, seconds=1.5, **VARIANTS[name])
    assert not seen.contact
    assert not seen.violated


def test_distances_are_those_of_the_tests_own_kinematics():
    arms = SphereArms(7)
    found = Scene(arms.urdf(), arms.names, space_from_mapping(arms.space()))
    rng = np.random.default_rng(0)
    for _ in range(20):
        place = rng.uniform(-2, 2, 7)
        wall, box, own = arms.clearances(place)
        distances = found.distances(place)
        near = {
            name: min(d for d, pair in zip(distances, found.pairs, strict=True) if name in pair)
            for name in ("wall", "second_box")
        }
        links = [
            d for d, (_, b) in zip(distances, found.pairs, strict=True) if b.startswith("arm0")
        ]
        assert near["wall"] == pytest.approx(wall, abs=1e-6)
        assert near["second_box"] == pytest.approx(box, abs=1e-5) or box < 0
        assert min(links) == pytest.approx(own, abs=1e-6)
        assert found.tool_at(place) == pytest.approx(arms.centers(place)[1], abs=1e-9)


GRIPPER = """<robot name="hand"><link name="base"><collision><geometry><box size="1 1 0.1"/>
</geometry></collision></link><link name="palm"/><link name="left"><collision><geometry>
<box size="0.02 0.02 0.1"/></geometry></collision></link><link name="right"><collision>
<geometry><cylinder radius="0.01" length="0.1"/></geometry></collision></link>
<joint name="turn" type="continuous"><parent link="base"/><child link="palm"/>
<origin xyz="0.3 0 0.4"/><axis xyz="1 1 0"/></joint>
<joint name="finger" type="prismatic"><parent link="palm"/><child link="left"/>
<axis xyz="0 1 0"/><origin xyz="0 0.1 0.1"/><limit lower="0" upper="0.1" velocity="1" effort="1"/>
</joint>
<joint name="follower" type="prismatic"><parent link="palm"/><child link="right"/>
<origin xyz="0 -0.1 0.1"/><axis xyz="0 1 0"/><limit lower="-0.2" upper="0" velocity="1"
effort="1"/><mimic joint="finger" multiplier="-2" offset="-0.01"/></joint></robot>"""


@settings(max_examples=60, deadline=None)
@given(
    a=st.tuples(st.floats(-6, 6), st.floats(0, 0.1)),
    b=st.tuples(st.floats(-6, 6), st.floats(0, 0.1)),
)
def test_reach_bounds_how_much_nearer_a_pair_can_come(a, b):
    box = {"name": "post", "size_m": [0.1, 0.1, 1], "position_m": [0.5, 0.4, 0.5]}
    floor = {"name": "floor", "normal": [0, 0, 1], "offset_m": 0.1}
    found = scene(GRIPPER, ["turn", "finger"], boxes=[box], planes=[floor])
    assert ("left", "right") in found.pairs  # the follower moves twice as fast
    assert not any("palm" in pair for pair in found.pairs)
    assert not any(set(pair) == {"base", "left"} for pair in found.pairs)  # neighbors
    change = found.distances(np.array(b)) - found.distances(np.array(a))
    most = found.reach @ np.abs(np.subtract(b, a))
    outside = (found.distances(np.array(a)) > 0) & (found.distances(np.array(b)) > 0)
    assert (np.abs(change) <= most + 1e-5)[outside].all()


def test_points_of_bare_links_workspaces_and_allowed_pairs(tmp_path):
    arms = SphereArms(7)
    workspace = {
        "name": "cell",
        "min_m": [-1, -1, 0.05],
        "max_m": [1, 1, 3],
        "links": ["arm0_tool"],
    }
    found = scene(arms.urdf(), arms.names, workspaces=[workspace], self_collision=False)
    assert len(found.pairs) == 6
    place = np.zeros(7)
    assert found.distances(place).min() == pytest.approx(1, abs=1e-5)
    assert found.distances(place)[5] == pytest.approx(3 - arms.centers(place)[1][2], abs=1e-5)
    srdf = tmp_path / "arm.srdf"
    srdf.write_text(
        '<robot name="a"><disable_collisions link1="arm0_link0" link2="arm0_link2"/></robot>'
    )
    file = tmp_path / "space.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "space": {
                    "srdf_file": "arm.srdf",
                    "allowed_pairs": [["arm0_link1", "arm0_link3"], ["arm0_link0", "cell"]],
                    "workspaces": [{"name": "cell", "min_m": [-1] * 3, "max_m": [2] * 3}],
                }
            }
        )
    )
    pairs = {frozenset(p) for p in Scene(arms.urdf(), arms.names, read_space(file)).pairs}
    assert frozenset(("arm0_link0", "arm0_link2")) not in pairs
    assert frozenset(("arm0_link1", "arm0_link3")) not in pairs
    assert frozenset(("arm0_link0", "arm0_link3")) in pairs
    assert not any("arm0_link0" in p and "cell (min x)" in p for p in pairs)
    assert frozenset(("arm0_link1", "cell (min x)")) in pairs


CUBE = "".join(f"v {x} {y} {z}\n" for x in (-1, 1) for y in (-1, 1) for z in (-1, 1))
_FACES = ((1, 2, 3, 4), (5, 6, 7, 8), (1, 2, 5, 6), (3, 4, 7, 8), (1, 3, 5, 7), (2, 4, 6, 8))
CUBE += "".join(f"f {a} {b} {c}\nf {b} {d} {c}\n" for a, b, c, d in _FACES)


@pytest.mark.parametrize("prefix", ["file://{}", "package://robot/cube.obj", "{}"])
def test_meshes_that_are_here_become_hulls(tmp_path, prefix, monkeypatch):
    folder = tmp_path / "share" / "robot"
    folder.mkdir(parents=True)
    (folder / "cube.obj").write_text(CUBE)
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    mesh = f'<mesh filename="{prefix.format(folder / "cube.obj")}" scale="0.1 0.1 0.1"/>'
    found = scene(SLIDER.format(shape=mesh), ["slide"], planes=[WALL])
    assert found.distances(np.array([0.3])) == pytest.approx([0.6], abs=1e-6)
    assert any("cart: convex hull" in note for note in found.notes)


def test_a_mesh_that_is_missing_is_refused_by_name_or_becomes_capsules(tmp_path):
    mesh = '<mesh filename="package://nobody/arm.stl"/>'
    urdf = SLIDER.format(shape=mesh)
    with pytest.raises(SpaceError, match=r"link 'cart'.*package://nobody/arm\.stl.*is not here"):
        scene(urdf, ["slide"], planes=[WALL])
    with pytest.raises(SpaceError, match=r"capsule_radius_m or link_capsule_radius_m\.cart"):
        scene(urdf, ["slide"], planes=[WALL], missing_meshes="capsules")
    found = scene(urdf, ["slide"], planes=[WALL], missing_meshes="capsules", capsule_radius_m=0.2)
    assert found.distances(np.array([0.3])) == pytest.approx([0.5], abs=1e-6)
    assert any("cart: capsule instead of a mesh" in note for note in found.notes)
    spoiled = tmp_path / "arm.stl"
    spoiled.write_bytes(b"solid nothing")
    with pytest.raises(SpaceError, match=r"arm\.stl"):
        scene(urdf.replace("package://nobody/arm.stl", str(spoiled)), ["slide"], planes=[WALL])
    chain = SphereArms(7).urdf().replace('<sphere radius="0.05"/>', mesh)
    found = scene(
        chain, SphereArms(7).names, planes=[WALL], missing_meshes="capsules",
        capsule_radius_m=0.05, link_capsule_radius_m={"arm0_link6": 0.08},
    )  # fmt: skip
    up = found.distances(np.zeros(7))
    assert up.max() == pytest.approx(0.95, abs=1e-6)
    assert {pair[0] for pair in found.pairs} >= {"arm0_link0", "arm0_link6"}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"marginm": 1}, r"marginm is not known; did you mean margin_m"),
        ({"margin_m": 0.01}, r"margin_m is 0.01; accepted: more than stop_m 0.02"),
        ({"stop_m": 0}, r"stop_m is 0; accepted: a number from 0.002"),
        ({"planes": [{**WALL, "normal": [0, 0, 0]}]}, r"planes\[0\].normal is .* not 0"),
        ({"planes": [{**WALL, "normal": [0, 1]}]}, r"planes\[0\].normal is \[0, 1\]; .*three"),
        ({"planes": [WALL, WALL]}, r"names repeat: wall"),
        ({"planes": [{**WALL, "frame": "nowhere"}]}, r"no link 'nowhere'; it has rail, cart"),
        ({"planes": [{**WALL, "frame": "cart"}]}, r"wall is given in 'cart', which moves"),
        ({"planes": [{**WALL, "links": ["cat"]}]}, r"names cat; there are cart, rail, wall"),
        ({"boxes": [{"name": "b", "size_m": [1, 0, 1]}]}, r"boxes\[0\].size_m is .* above 0"),
        ({"boxes": [{"name": "b", "size_m": [1, 1, 1]}]}, r"boxes\[0\].position_m is missing"),
        ({"workspaces": [{"name": "w", "min_m": [0] * 3, "max_m": [1, 1, 0]}]}, r"min_m z 0"),
        ({"allowed_pairs": [["cart", "cart"]]}, r"allowed_pairs is .*pairs of different names"),
        ({"planes": [WALL], "allowed_pairs": [["cart", "wal"]]}, r"names wal; there are"),
        ({"tool": {"frame": "hand", "max_speed_m_per_s": 1}}, r"no link 'hand'"),
        ({"tool": {"frame": "cart"}}, r"tool.max_speed_m_per_s is missing"),
        ({"other_joints": {"lift": 0.1}}, r"'lift' is no joint that rests"),
        ({"srdf_file": "/nowhere.srdf", "planes": [WALL]}, r"cannot read /nowhere.srdf"),
        ({}, r"nothing to check"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_what_is_accepted(space, message):
    with pytest.raises(SpaceError, match=message):
        scene(SLIDER.format(shape=BALL), ["slide"], **space)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("", r"link 'cart' of the URDF is empty"),
        ('<cone radius="1"/>', r"is a cone; accepted: box"),
        ('<sphere radius="-1"/>', r"radius is '-1'; accepted: 1 numbers above 0"),
        ('<box size="1 1"/>', r"size is '1 1'; accepted: 3 numbers"),
        ('<box size="1 1 nan"/>', r"size is '1 1 nan'"),
    ],
)
def test_a_wrong_shape_is_refused_by_the_name_of_its_link(shape, message):
    with pytest.raises(SpaceError, match=message):
        scene(SLIDER.format(shape=shape), ["slide"], planes=[WALL])


def test_joints_that_are_not_commanded_need_a_place(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump({"space": {"planes": [WALL]}}))
    limits = JointLimits(("turn", "arm_less"), [-3, 0], [3, 1], [1, 1], [1, 1])
    with pytest.raises(SpaceError, match=r"finger of the URDF move but are not commanded"):
        make_guard(file, GRIPPER, limits, DT)
    file.write_text(
        yaml.safe_dump({"space": {"planes": [WALL], "other_joints": {"finger": 0.05}}})
    )
    _, notes = make_guard(file, GRIPPER, limits, DT)
    assert any("moves no shape: arm_less" in note for note in notes)
    assert any("rest where the space file says: finger" in note for note in notes)
    with pytest.raises(SpaceError, match=r"none of the commanded joints \(x\)"):
        make_guard(file, GRIPPER, JointLimits(("x",), [0], [1], [1], [1]), DT)


@pytest.mark.parametrize("package", ["coal", "pinocchio"])
def test_without_the_packages_a_space_is_refused(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SpaceError, match=r"pip install"):
        scene(SLIDER.format(shape=BALL), ["slide"], planes=[WALL])
