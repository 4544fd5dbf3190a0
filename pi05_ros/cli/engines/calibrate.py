"""`pi05 calibrate CHECKPOINT`: FP8 activation scales of the cuda backend from observations."""

from __future__ import annotations

import argparse
from pathlib import Path

from pi05_ros.cli.engines.engine_options import (
    add_model_arguments,
    add_sample_arguments,
    add_steps_argument,
    collect_samples,
    guarded,
    load_subject,
    require_bag_reader,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model_arguments(parser)
    add_sample_arguments(parser)
    parser.add_argument("--vision", choices=("bf16", "fp8"), default="bf16")
    add_steps_argument(parser)
    parser.add_argument(
        "--out",
        type=Path,
        help="NAME of NAME.safetensors and .json; default: the cache, where engines find them",
    )


def run(args: argparse.Namespace) -> int:
    """Record the largest input of every FP8 product and save it."""
    return guarded(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    from pi05_ros.backends import BackendError
    from pi05_ros.backends.cuda import create, usable
    from pi05_ros.backends.cuda.scales import default_path, files_of
    from pi05_ros.backends.engine import Precision

    ok, why = usable()
    if not ok:
        raise BackendError(f"pi05 calibrate runs the cuda backend: {why}")
    require_bag_reader(args)
    subject = load_subject(args)
    samples = collect_samples(args, subject)
    engine = create(
        subject.model,
        Precision(args.vision, "fp8", "fp8"),
        horizon=subject.shapes.horizon,
        max_prompt_tokens=subject.shapes.prompt_tokens,
    )
    for _ in range(2):  # the second pass runs with the scales that the first one found
        engine.start_calibration()
        for sample in samples:
            engine.observe(sample.images, sample.tokens, sample.noise, args.steps)
        made = engine.calibration(len(samples))
        engine.use_calibration(made)
    out = args.out or default_path(made.fingerprint)
    made.save(out)
    largest = sorted(zip(made.amax.tolist(), made.sites, strict=True), reverse=True)[:5]
    print(f"{len(samples)} observations, {len(made.sites)} sites; largest inputs:")
    for value, site in largest:
        print(f"  {site}: {value:.4g}")
    if any(sample.synthetic for sample in samples):
        print("made from synthetic observations: for dry runs only")
    print(f"written to {files_of(out)[0]} and .json")
    if args.out:
        print("engines take it with the option calibration=NAME")
    return 0
