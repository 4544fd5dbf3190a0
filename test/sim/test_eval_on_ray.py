"""Evaluation over a Ray cluster: the rows of one process, also after a run that was cut off."""

import pytest

from pi05_ros.cli.main import main
from pi05_ros.sim.evaluation.evaluate import RESULTS, Cluster, evaluate, jobs
from pi05_ros.sim.evaluation.setting import Setting
from pi05_ros.sim.training.shipped import CHECKPOINT


def test_options_of_the_cluster_are_checked(tmp_path, capsys):
    out = ["--out", str(tmp_path)]
    assert main(["eval", "--ray-gpus", "1", *out]) == 2
    assert "goes with --ray" in capsys.readouterr().err
    assert main(["eval", "--ros", "--ray", "local", *out]) == 2
    assert "--ray is not for --ros" in capsys.readouterr().err


def test_the_rows_are_those_of_one_process_and_a_run_goes_on(tmp_path):
    ray = pytest.importorskip("ray", reason="pip install 'pi05_ros[fleet]'")
    todo = jobs([Setting(max_steps=30), Setting(max_steps=30, denoise_steps=1)],
                ["pick_red", "push_blue"], range(2))  # fmt: skip
    here = evaluate(todo, tmp_path / "here", str(CHECKPOINT))
    cluster = Cluster("local", workers=2)
    try:
        evaluate(todo[:3], tmp_path / "there", str(CHECKPOINT), cluster=cluster)
        kept = (tmp_path / "there" / RESULTS).read_text()
        there = evaluate(todo, tmp_path / "there", str(CHECKPOINT), cluster=cluster)
        assert there == here
        assert (tmp_path / "there" / RESULTS).read_text().startswith(kept)
        with pytest.raises(ValueError, match="draws with"):
            evaluate(todo, tmp_path / "other", str(CHECKPOINT),
                     cluster=Cluster("local", 1, pictures="oil"))  # fmt: skip
    finally:
        ray.shutdown()
