"""`pi05 tune`: choose the cuda backend's tile sizes on this GPU."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--preset", default="pi05", help="sizes of the model")
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=20, help="prompt tokens")
    parser.add_argument("--horizon", type=int, default=50)
    parser.add_argument(
        "--precision", nargs="+", default=["auto", "bf16"], help="auto, bf16, fp8, fp8-w8a16"
    )
    parser.add_argument(
        "--seconds", type=float, default=600.0, help="time for each precision (default 600)"
    )


def run(args: argparse.Namespace) -> int:
    """Tune each precision in turn and write the user's file."""
    import torch

    from pi05_ros.backends import BackendError, create_engine
    from pi05_ros.backends.cuda import usable
    from pi05_ros.backends.cuda.inputs import check_range
    from pi05_ros.model import Pi05Config

    config = Pi05Config.preset(args.preset)
    for name, least in (("views", 0), ("tokens", 1), ("horizon", 1)):
        check_range(f"--{name}", getattr(args, name), least)
    ok, why = usable()
    if not ok:
        raise BackendError(why)
    from pi05_ros.backends.cuda.tuner import save, tune
    from pi05_ros.bench.model import MIXES, STAGES, Workload, inputs
    from pi05_ros.model import Pi05

    model = Pi05.random_on_device(config, dtype=torch.bfloat16, device="cuda")
    work = Workload(args.views, args.tokens, args.horizon, 3)
    path = None
    for word in args.precision:
        precision = dict(zip(STAGES, MIXES.get(word, (word,) * 3), strict=True))
        engine = create_engine(model, "cuda", precision, horizon=args.horizon)
        images, tokens, noise = inputs(model.config, work, (224, 224), 0)
        engine.sample(images, tokens, noise, work.steps)
        cache = engine.prefill(images, tokens)
        from pi05_ros.backends.cuda.engine import CudaEngine

        assert isinstance(engine, CudaEngine)
        rows = engine.buffers.rows_of(cache)
        print(f"precision {word}, from {engine.tuning.source}")
        chosen = tune(engine, rows=rows, horizon=args.horizon, seconds=args.seconds)
        path = save(chosen, engine.device)
        engine.close()
    print(f"written to {path}")
    return 0
