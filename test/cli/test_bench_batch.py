"""`pi05 bench batch` times every batch size, and answers every request of a batch."""

import pytest
import torch

from pi05_ros.bench.batching import BatchStages, measure_batches
from pi05_ros.bench.bench_requests import BatchBenchRequest
from pi05_ros.cli.main import main
from pi05_ros.model import Pi05, Pi05Config

SMALL = BatchBenchRequest("tiny", "cpu", (3,), views=1, tokens=4, horizon=5, steps=2, runs=1)


def test_each_batch_has_a_row():
    one, three = measure_batches(SMALL)
    assert (one.batch, three.batch) == (1, 3)
    assert three.in_turn == pytest.approx(3 * one.total)
    assert three.answer_in_turn == pytest.approx(2 * one.total)
    assert min(three.vision, three.prefill, three.denoise) > 0


@torch.no_grad()
def test_a_batch_has_an_answer_for_every_request():
    model = Pi05.random(Pi05Config.preset("tiny"))
    found = BatchStages(model, 3, SMALL).denoise()
    assert found.shape == (3, 5, model.config.action_dim)
    assert torch.isfinite(found).all()


def test_the_command_prints_a_table(capsys):
    words = ["--preset", "tiny", "--device", "cpu", "--batches", "2", "--runs", "1",
             "--views", "1", "--tokens", "4", "--horizon", "5", "--steps", "1"]  # fmt: skip
    assert main(["bench", "batch", *words]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_it_says_so(capsys):
    assert main(["bench", "batch"]) == 2
    assert "--device cpu" in capsys.readouterr().err
