"""`pi05 bench compare` and `pi05 bench table`: ABAB, the interval, the history, and the page."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pi05_ros.bench.bench_requests import CompareRequest
from pi05_ros.bench.comparison.fresh_runs import fresh_run
from pi05_ros.bench.comparison.history_file import add_to_history, read_history
from pi05_ros.bench.comparison.model_table import BEGIN, END, render
from pi05_ros.bench.comparison.program_trees import own_tree, program_tree
from pi05_ros.bench.comparison.ratio import ratio_of
from pi05_ros.bench.comparison.side_by_side import compare
from pi05_ros.cli.main import main
from pi05_ros.errors import InvalidValueError
from pi05_ros.small_files import FileError

ROOT = Path(__file__).parents[2]
TINY = "--preset tiny --backend eager --runs 2 --steps 1 --views 1 --tokens 3 --horizon 4"


def made_up(p50, *, device="GPU", commit="a" * 40, dirty=False, steps=10, precision="fp8"):
    return {
        "time": "2026-01-01T00:00:00+00:00",
        "side": "A",
        "device": device,
        "driver": "580.1",
        "torch": "2.11",
        "commit": commit,
        "dirty": dirty,
        "sources": str(commit),
        "weights": "random pi05",
        "workload": {"views": 2, "tokens": 20, "horizon": 50, "steps": steps},
        "precision": {"vision": "bf16", "prefill": precision, "denoise": precision},
        "runs": 200,
        "p50_ms": {"total": p50, "vision": p50 / 4},
        "p99_ms": {"total": p50 + 1, "vision": p50 / 2},
    }


def runner(times, order):
    """Stands for fresh processes: the times of each side, one after the other."""

    def run(tree, options, side):
        order.append(side)
        return made_up(next(times[side])) | {"side": side, "settings": list(options)}

    return run


def test_two_settings_in_fresh_processes_with_a_history(tmp_path, capsys):
    history, report = tmp_path / "sub" / "history.json", tmp_path / "report.json"
    words = ["--options", TINY, "--b", "--tokens 5", "--pairs", "2", "--history", str(history)]
    words += ["--json", str(report), "--at-most", "1e-9"]
    assert main(["bench", "compare", *words]) == 1  # no B takes a billionth of A's time
    shown = capsys.readouterr().out
    assert "total    B / A" in shown
    assert "not shown to be at most 1e-09" in shown
    runs = read_history(history)
    assert [run["side"] for run in runs] == ["A", "B", "A", "B"]
    assert [run["workload"]["tokens"] for run in runs] == [3, 5, 3, 5]
    for run in runs:
        assert run["runs"] == 2
        assert run["p99_ms"]["total"] >= run["p50_ms"]["total"] > 0
        assert run["device"]
        assert run["torch"]
        assert run["sources"] == program_tree(str(own_tree()), tmp_path).sources
    document = json.loads(report.read_text())
    pairs = zip(document["records"][::2], document["records"][1::2], strict=True)
    logs = [math.log(b["p50_ms"]["total"] / a["p50_ms"]["total"]) for a, b in pairs]
    assert document["ratios"]["total"]["value"] == pytest.approx(math.exp(sum(logs) / 2))


def test_a_run_takes_the_package_of_its_tree_whatever_the_current_folder_is(tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    package = copy / "pi05_ros"
    (package / "cli").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "cli" / "__init__.py").write_text("")
    (package / "cli" / "main.py").write_text(
        "import json\n"
        "def main(words):\n"
        "    path = words[words.index('--json') + 1]\n"
        f"    json.dump({{**{made_up(1.5)!r}, 'ready_s': 1, 'results': [dict(workload={{}},\n"
        "        times_ms=dict(total=dict(p50=1.5, p99=2)))]}, open(path, 'w'))\n"
    )
    (copy / "COMMIT").write_text("b" * 40 + "\n")
    tree = program_tree(str(copy), tmp_path)
    assert (tree.commit, tree.dirty) == ("b" * 40, None)
    monkeypatch.chdir(ROOT)
    assert fresh_run(tree, ["--steps", "1"], "A")["p50_ms"] == {"total": 1.5}


def test_sides_take_turns_and_each_run_is_kept_at_once(tmp_path):
    history, order = tmp_path / "h.json", []
    times = {"A": iter([10.0, 10.2, 9.8]), "B": iter([5.0, 5.1, 4.9])}
    request = CompareRequest(pairs=3, history=history)
    outcome = compare(request, lambda _: None, runner(times, order))
    assert order == list("ABABAB")
    assert len(read_history(history)) == 6
    assert outcome.ratio.value == pytest.approx(0.5)
    assert outcome.ratio.within(0.51)
    assert outcome.ratios["vision"].value == pytest.approx(0.5)
    broken = {"A": iter([10.0]), "B": iter([])}
    with pytest.raises(StopIteration):
        compare(request, lambda _: None, runner(broken, order))
    assert len(read_history(history)) == 7  # the finished run of the broken comparison


def test_the_interval_is_students_t_over_pairs():
    ratio = ratio_of([10.0, 10.0, 10.0], [9.0, 10.0, 11.0])
    logs = [math.log(0.9), 0.0, math.log(1.1)]
    mean = sum(logs) / 3
    half = 4.302653 * math.sqrt(sum((x - mean) ** 2 for x in logs) / 2 / 3)
    assert (ratio.low, ratio.high) == pytest.approx((math.exp(mean - half), math.exp(mean + half)))
    assert not ratio.within(1.1)
    same = ratio_of([3.0, 5.0], [3.3, 5.5])
    assert (same.low, same.value, same.high) == pytest.approx((1.1, 1.1, 1.1))
    assert ratio_of([1e-60, 1e60], [1e60, 1e-60]).high == math.inf
    for a, b in (([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([1.0, 0.0], [1.0, 1.0])):
        with pytest.raises(InvalidValueError):
            ratio_of(a, b)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_git_revision_is_unpacked_and_a_plain_folder_is_known_by_its_sources(tmp_path):
    repository = tmp_path / "repository"
    (repository / "pi05_ros").mkdir(parents=True)
    (repository / "pi05_ros" / "__init__.py").write_text("one = 1\n")
    git = ["git", "-C", str(repository), "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    old = program_tree("HEAD", tmp_path / "old", repository)
    clean = program_tree(str(repository), tmp_path / "none")
    assert old.sources == clean.sources
    assert old.commit == clean.commit
    assert not clean.dirty
    (repository / "pi05_ros" / "__init__.py").write_text("one = 2\n")
    changed = program_tree(str(repository), tmp_path / "none")
    assert changed.dirty
    assert changed.sources != old.sources
    assert (old.folder / "pi05_ros" / "__init__.py").read_text() == "one = 1\n"
    inside = repository / "plain"  # a folder of another repository says nothing by itself
    (inside / "pi05_ros").mkdir(parents=True)
    (inside / "pi05_ros" / "__init__.py").write_text("one = 1\n")
    plain = program_tree(str(inside), tmp_path / "none")
    assert (plain.commit, plain.dirty, plain.sources) == (None, None, old.sources)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["one"], "two sides are compared"),
        (["no/such", "revision"], "no git revision known"),
        ([".", str(ROOT / "docs")], "is no source tree"),
        (["--pairs", "1"], "accepted: 2 to 100"),
        (["--a", "--json x"], "not in a comparison"),
        (["--level", "1"], "accepted: 0.5 to below 1"),
        (["--history", str(ROOT / "setup.cfg")], "is not valid JSON"),
    ],
)
def test_what_cannot_be_compared_is_said_before_a_run(words, said, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["bench", "compare", *words]) == 2
    assert said in capsys.readouterr().err


def test_options_that_are_no_shell_words_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "compare", "--a", "'"])
    assert "No closing quotation" in capsys.readouterr().err


def test_a_run_that_fails_names_its_side(capsys):
    assert main(["bench", "compare", "--a", "--checkpoint /no/such", "--options", TINY]) == 2
    shown = capsys.readouterr().err
    assert "side A" in shown
    assert "/no/such" in shown


def test_writers_of_a_history_lose_no_record(tmp_path):
    path = tmp_path / "h.json"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: add_to_history(path, [made_up(1.0 + i)]), range(20)))
    assert sorted(run["p50_ms"]["total"] for run in read_history(path)) == [
        1.0 + i for i in range(20)
    ]
    for spoiled in ('{"format": 2, "runs": []}', '{"format": 1}', '{"format": 1, "runs": [{}]}'):
        path.write_text(spoiled)
        with pytest.raises(FileError):
            add_to_history(path, [made_up(1.0)])
        assert path.read_text() == spoiled


def test_the_table_shows_the_newest_clean_commit(tmp_path, capsys):
    old, new = [made_up(9.0)], [made_up(t, commit="c" * 40) for t in (6.0, 6.2, 6.4)]
    other = [made_up(3.0, steps=1), made_up(10.0, precision="bf16")]
    history, page = tmp_path / "h.json", tmp_path / "page.md"
    add_to_history(history, [*old, *new, *other, made_up(1.0, dirty=True)])
    rows = render(read_history(history)).splitlines()[2:]
    assert [row.split(" | ")[5:9] for row in rows] == [
        ["bf16 / bf16 / bf16", "10.00", "11.00", "1 x 200"],
        ["bf16 / fp8 / fp8", "6.20", "7.20", "3 x 200"],
        ["bf16 / fp8 / fp8", "3.00", "4.00", "1 x 200"],
    ]
    add_to_history(history, [made_up(5.0, commit=None) | {"sources": "d" * 64}])
    assert f"| 5.00 | 6.00 | 1 x 200 | 580.1, 2.11 | sources {'d' * 10} |" in render(
        read_history(history)
    )
    sides = [{"sources": "e" * 64}, {"sources": "f" * 64}] * 2
    turns = zip((7.0, 4.0, 7.1, 4.2, 6.9), [*sides, sides[0]], strict=True)  # B's third is missing
    add_to_history(history, [made_up(ms, commit=None) | side for ms, side in turns])
    assert f"| 4.10 | 5.10 | 2 x 200 | 580.1, 2.11 | sources {'f' * 10} |" in render(
        read_history(history)
    )
    page.write_text(f"before\n{BEGIN}\nstale\n{END}\nbehind\n")
    table = ["bench", "table", str(history), "--into", str(page)]
    assert main([*table, "--check"]) == 1
    assert main(table) == 0
    assert main([*table, "--check"]) == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nbehind\n")
    assert "stale" not in text
    page.write_text("no markers\n")
    assert main(table) == 2
    assert page.read_text() == "no markers\n"


def test_the_checked_in_page_shows_the_checked_in_history():
    table = ["bench", "table", str(ROOT / "docs" / "model_history.json")]
    assert main([*table, "--into", str(ROOT / "BENCHMARKS.md"), "--check"]) == 0
