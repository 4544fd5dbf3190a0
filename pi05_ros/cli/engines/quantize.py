"""`pi05 quantize CHECKPOINT`: FP8 ranges from recorded observations, with a report per layer."""

from __future__ import annotations

import argparse
from pathlib import Path

from pi05_ros.backends.quantization.presets import PRESETS
from pi05_ros.cli.engines.engine_options import (
    add_model_arguments,
    add_sample_arguments,
    add_steps_argument,
    collect_samples,
    guarded,
    load_subject,
    show_progress,
)

LAYERS_SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add_model_arguments(parser)
    add_sample_arguments(parser)
    parser.add_argument(
        "--preset",
        default="fp8",
        choices=sorted(PRESETS),
        help="; ".join(f"{name}: {p.summary}" for name, p in PRESETS.items()),
    )
    parser.add_argument(
        "--experimental", action="store_true", help="take a preset marked experimental"
    )
    add_steps_argument(parser)
    parser.add_argument("--out", type=Path, help="folder instead of the cache")


def run(args: argparse.Namespace) -> int:
    """Calibrate and keep ranges, samples and report."""
    return guarded(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    from pi05_ros.backends.files import (
        make_model_folder,
        model_folder,
        require_writable,
        whole_folder,
    )
    from pi05_ros.backends.quantization.calibrate import (
        calibrate,
        modelopt_version,
        require_intent,
    )
    from pi05_ros.backends.quantization.presets import preset
    from pi05_ros.backends.quantization.samples import save_samples

    modelopt_version()
    choice = preset(args.preset)
    require_intent(choice, experimental=args.experimental)
    subject = load_subject(args, "fp32")
    folder = args.out or model_folder(subject.weights, args.cache) / "quant"
    require_writable(folder)
    samples = collect_samples(args, subject)
    print(f"{len(samples)} observations, preset {args.preset}")
    calibration = calibrate(
        subject.model,
        subject.weights,
        samples,
        args.preset,
        shapes=subject.shapes,
        steps=args.steps,
        allow_synthetic=args.allow_synthetic,
        experimental=args.experimental,
        progress=show_progress,
    )
    if args.out is None:
        make_model_folder(subject.weights, args.cache)
        folder /= calibration.digest[:16]
    with whole_folder(folder, "calibration.json") as part:
        calibration.save(part)
        save_samples(part / "golden.safetensors", samples)
    layers = calibration.info["layers"]
    inputs = [item for item in layers.items() if "amax" in item[1]]  # none where weights alone are
    worst = sorted(inputs, key=lambda item: -item[1].get("clipped", 0.0))
    beyond = "; inputs with most values beyond their range:" if worst else ""
    print(f"{len(calibration.amax)} quantizers{beyond}")
    for name, row in worst[:LAYERS_SHOWN]:
        print(
            f"  {name}: amax {row['amax']:.4g}, "
            f"clipped {100 * row.get('clipped', 0.0):.4f} %, "
            f"flushed to zero {100 * row.get('flushed', 0.0):.4f} %"
        )
    for name, value in calibration.info["near_half_limit"].items():
        print(f"  warning: {name} reaches {value:.3g}; float16 ends at 65504")
    if calibration.info["synthetic"]:
        print("made from synthetic observations: for dry runs only")
    if choice.experimental:
        print(
            f"preset {choice.name} is EXPERIMENTAL: no engine can be built from it; its accuracy:"
        )
        print(f"  pi05 check {args.checkpoint} --backend simulated --calibration {folder}")
    print(f"written to {folder}")
    return 0
