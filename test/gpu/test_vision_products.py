"""The Hopper products of vision against FP64 with poisoned memory, and the tower on them."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cosine_similarity, gelu

from pi05_ros.backends import Precision
from pi05_ros.backends.cuda.hopper.vision import vision_products as vision
from pi05_ros.backends.cuda.weights import fold_norm

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="needs a device of compute capability 9.0",
)
E4M3 = torch.float8_e4m3fn
GUARD = 64  # rows or elements of poison behind

# rows, N, K, slices of K, GELU
CASES = [
    (512, 3456, 1152, 1, False),
    (512, 4304, 1152, 1, True),
    (512, 1152, 4304, 4, False),
    (512, 1152, 1152, 3, False),
    (512, 2048, 1152, 1, False),
    (256, 4304, 1152, 1, True),
    (256, 1152, 4304, 7, False),
    (256, 3456, 1152, 1, False),
    (768, 4304, 1152, 1, True),
    (768, 1152, 4304, 3, False),
    (768, 1152, 1152, 5, False),
    (1024, 4304, 1152, 1, True),
    (1024, 608, 2064, 1, False),
    (256, 80, 128, 1, True),
    (512, 16, 1008, 2, False),
]
BF16_CASES = [
    *CASES,
    (512, 1152, 1152, 4, False),
    (256, 1152, 4304, 8, False),
    (256, 72, 64, 1, True),
    (512, 8, 1000, 2, False),
    (1024, 600, 2056, 1, False),
]


def draws(seed):
    g = torch.Generator(device="cuda").manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g, device="cuda")

    return draw


def guarded(values, dtype=torch.bfloat16):
    """`values` with rows of NaN behind them."""
    room = torch.full((GUARD, values.shape[1]), math.nan, device="cuda")
    return torch.cat((values, room)).to(dtype)


def exact(x, weight, bias, with_gelu):
    want = x.double() @ weight.double().t()
    if bias is not None:
        want += bias.double()
    return gelu(want, approximate="tanh") if with_gelu else want


def same_bits(results):
    first, *others = (result.view(torch.uint8) for result in results)
    return all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("case", range(len(BF16_CASES)))
def test_products_match_fp64(case):
    rows, N, K, splits, with_gelu = BF16_CASES[case]
    draw = draws(case)
    x, weight = guarded(draw(rows, K)), guarded(draw(N, K) / math.sqrt(K))
    bias = None if splits > 1 else draw(N).bfloat16()
    clusters = vision.resident_clusters(torch.device("cuda", 0), coded=False)
    results = []
    for dependent in (True, False, True):
        out = torch.full((splits * rows * N + GUARD,), math.nan, device="cuda").bfloat16()
        vision.product(
            x[:rows], weight[:N], bias, out, splits=splits, clusters=clusters, gelu=with_gelu,
            dependent=dependent, early=dependent,
        )  # fmt: skip
        torch.cuda.synchronize()
        assert out[splits * rows * N :].isnan().all()
        results.append(out[: splits * rows * N].view(splits, rows, N))
    assert same_bits(results)
    want = exact(x[:rows], weight[:N], bias, with_gelu)
    got = results[0].double().sum(0)
    assert float((got - want).norm() / want.norm()) < 4e-3  # BF16 of each slice


@pytest.mark.parametrize("stages", [3, vision.MAX_STAGES])
@pytest.mark.parametrize("case", range(len(CASES)))
def test_products_of_e4m3_match_fp64(case, stages):
    rows, N, K, splits, with_gelu = CASES[case]
    draw = draws(case)
    x = guarded(draw(rows, K) * 50, E4M3)
    weight = guarded(draw(N, K) * 60, E4M3)
    x_scale = torch.tensor([2.0**-6], device="cuda")
    weight_scale = (0.5 + draw(N).abs()) * 0.01 / math.sqrt(K)
    bias = None if splits > 1 else draw(N)
    want = exact(
        x[:rows].double() * x_scale.double(),
        weight[:N].double() * weight_scale.double()[:, None],
        bias,
        with_gelu,
    )
    out_scale = torch.tensor([2.0**-5], device="cuda") if with_gelu else None
    amax = torch.zeros(1, device="cuda") if with_gelu else None
    scales = vision.CodedProduct(weight_scale, x_scale, out_scale, amax)
    clusters = vision.resident_clusters(torch.device("cuda", 0), coded=True)
    results = []
    for dependent in (True, False, True):
        out = torch.full((splits * rows * N + GUARD,), math.nan, device="cuda")
        out = out.to(E4M3 if with_gelu else torch.bfloat16)
        vision.product(
            x[:rows], weight[:N], bias, out, splits=splits, clusters=clusters, gelu=with_gelu,
            dependent=dependent, early=dependent, stages=stages, scales=scales,
        )  # fmt: skip
        torch.cuda.synchronize()
        assert out[splits * rows * N :].float().isnan().all()
        results.append(out[: splits * rows * N].view(splits, rows, N))
    assert same_bits(results)
    if not with_gelu:
        got = results[0].double().sum(0)
        assert float((got - want).norm() / want.norm()) < 4e-3  # BF16 of each slice
        return
    got = results[0][0].double() * out_scale.double()
    rounded = (want / out_scale.double()).float().clamp(-448, 448).to(E4M3)
    nearest = rounded.double() * out_scale.double()
    assert float((got - want).norm() / (nearest - want).norm()) < 1.02
    assert float(amax) == pytest.approx(float(want.abs().max()), rel=2e-3)


# rows, N, K, whether the result replaces the residual
NARROW_CASES = [
    (256, 1152, 1152, True),
    (512, 1152, 1152, True),
    (768, 1152, 1152, True),
    (512, 1152, 4304, True),
    (512, 2048, 1152, False),
    (1024, 600, 2056, True),
    (384, 72, 64, False),
    (128, 8, 1000, True),
]


@pytest.mark.parametrize("stages", [3, 8])
@pytest.mark.parametrize("case", range(len(NARROW_CASES)))
def test_narrow_products_match_fp64(case, stages):
    rows, N, K, in_place = NARROW_CASES[case]
    draw = draws(case)
    x, weight = guarded(draw(rows, K)), guarded(draw(N, K) / math.sqrt(K))
    bias = draw(N).bfloat16()
    before = (3 * draw(rows, N) + 20 * draw(rows, 1)).bfloat16()
    clusters = vision.resident_clusters(torch.device("cuda", 0), coded=False)
    results, found = [], []
    for dependent in (True, False, True):
        out = torch.full((rows * N + GUARD,), math.nan, device="cuda").bfloat16()
        if in_place:
            out[: rows * N] = before.flatten()
        whole = out[: rows * N].view(rows, N)
        room = torch.full((vision.moments_room(rows, N) + GUARD,), math.nan, device="cuda")
        moments = vision.narrow_product(
            x[:rows], weight[:N], bias, whole, residual=whole if in_place else before,
            moments=room, clusters=clusters, dependent=dependent, early=dependent, stages=stages,
        )  # fmt: skip
        torch.cuda.synchronize()
        assert out[rows * N :].isnan().all()
        assert room[moments.values.numel() :].isnan().all()
        results.append(whole)
        found.append(moments.values)
    assert same_bits(results)
    assert same_bits(found)
    want = exact(x[:rows], weight[:N], bias, False) + before.double()
    got = results[0].double()
    assert float((got - want).norm() / want.norm()) < 2.5e-3  # one rounding to BF16
    for tile, columns in zip(found[0].double(), got.split(moments.step, dim=1), strict=True):
        mean = columns.mean(1)
        squares = (columns - mean[:, None]).square().sum(1)
        assert float((tile[:, 0] - mean).abs().max() / columns.abs().max()) < 1e-6
        assert float(((tile[:, 1] - squares).abs() / squares).max()) < 1e-5


ROWS_OF_A_NORM = (
    "plain", "large mean", "outliers", "outliers and large mean", "small", "constant",
)  # fmt: skip


def rows_of(kind, draw, rows, K):
    x = draw(rows, K)
    if "outliers" in kind:  # in the same columns of all rows, as trained towers have them
        x[:, 7::211] *= 100
    if "large mean" in kind:
        x += 40 * (1 + draw(rows, 1).abs())
    if kind == "small":
        x *= 1e-3
    if kind == "constant":
        x = draw(rows, 1).expand(rows, K)
    return x.bfloat16().contiguous()


@pytest.mark.parametrize("N", [4304, 3456])
@pytest.mark.parametrize("rows", [256, 512, 768])
@pytest.mark.parametrize("kind", ROWS_OF_A_NORM)
def test_products_behind_a_folded_norm_match_fp64(kind, rows, N):
    K, draw = 1152, draws(rows + N)
    x, weight = rows_of(kind, draw, rows, K), (draw(N, K) / math.sqrt(K)).bfloat16()
    bias, norm = draw(N) * 0.3, (1 + 0.3 * draw(K), 0.3 * draw(K))
    clusters = vision.resident_clusters(torch.device("cuda", 0), coded=False)
    how = {"clusters": clusters, "dependent": True, "early": True, "stages": 4}
    folded, affine = fold_norm(weight, bias, norm, torch.bfloat16)
    nothing = torch.zeros(rows, 64, device="cuda").bfloat16()
    results = []
    for _ in range(3):
        out = torch.full((rows * N + GUARD,), math.nan, device="cuda").bfloat16()
        again = torch.full_like(x, math.nan)
        room = torch.full((vision.moments_room(rows, K),), math.nan, device="cuda")
        moments = vision.narrow_product(
            nothing, torch.zeros_like(weight[:K, :64]), torch.zeros_like(x[0]), again,
            residual=x, moments=room, **how,
        )  # fmt: skip
        whole = out[: rows * N].view(rows, N)
        vision.normed_product(again, folded, affine, moments, whole, **how)
        torch.cuda.synchronize()
        assert torch.equal(again, x)
        assert out[rows * N :].isnan().all()
        results.append(whole)
    assert same_bits(results)
    doubles = [part.double() for part in norm]
    true = torch.nn.functional.layer_norm(x.double(), (K,), *doubles, 1e-6)
    want = exact(true, weight, bias, True)
    error = float((results[0].double() - want).norm() / want.norm())
    h = torch.nn.functional.layer_norm(x.float(), (K,), *norm, 1e-6).bfloat16()
    before = torch.empty(rows, N, device="cuda").bfloat16()
    vision.product(h, weight, bias.bfloat16(), before, splits=1, gelu=True, **how)
    error_before = float((before.double() - want).norm() / want.norm())
    print(f"{kind}, {rows} x {N}: {error:.2e} folded, {error_before:.2e} with a norm's kernel")
    assert error < 1.1 * error_before + 1e-5


def test_what_does_not_fit_is_refused():
    x = torch.zeros(256, 1152, dtype=torch.bfloat16, device="cuda")
    w = torch.zeros(64, 1152, dtype=torch.bfloat16, device="cuda")
    out = torch.zeros(8 * 256 * 64, dtype=torch.bfloat16, device="cuda")
    how = {"clusters": 66, "gelu": False, "dependent": False}
    for rows, bias, splits in ((128, None, 1), (256, None, 8), (256, w[0, :64], 2)):
        with pytest.raises(vision.KernelError):
            vision.product(x[:rows], w, bias, out, splits=splits, **how)
    room = torch.zeros(vision.moments_room(256, 64), device="cuda")
    short = {"clusters": 66, "dependent": False, "residual": out}
    for rows, columns, memory in ((192, 64, room), (256, 60, room), (256, 64, room[:8])):
        with pytest.raises(vision.KernelError):
            vision.narrow_product(
                x[:rows], w[:columns], w[0, :64], out, moments=memory, **short
            )  # fmt: skip
    affine, moments = torch.zeros(64, 2, device="cuda"), vision.Moments(room.view(4, 256, 2), 16)
    for rows, step in ((128, 288), (256, 1152)):
        with pytest.raises(vision.KernelError):
            vision.normed_product(
                x[:rows], w, affine, vision.Moments(moments.values, step), out,
                clusters=66, dependent=False,
            )  # fmt: skip
    one = torch.ones(64, device="cuda")
    codes, coded_w = x.to(E4M3), w.to(E4M3)
    for gelu_too, out_scale, splits in ((True, None, 1), (False, one, 1), (False, None, 4)):
        scales = vision.CodedProduct(one, one, out_scale)
        with pytest.raises(vision.KernelError):
            vision.product(
                codes, coded_w, None, out, splits=splits, clusters=66, gelu=gelu_too,
                dependent=False, scales=scales,
            )  # fmt: skip


def case_of(views):
    g = torch.Generator(device="cuda").manual_seed(views)
    images = torch.randint(0, 256, (views, 224, 224, 3), generator=g, device="cuda").byte()
    return images, torch.arange(5, 25, device="cuda")


def image_tokens(engine, views):
    """Image tokens, the same bits three times, the last from poisoned buffers."""
    images, tokens = case_of(views)
    again = []
    for turn in range(3):
        if turn == 2:
            b = engine.buffers
            for buffer in (
                b.vx,
                b.vh,
                b.vqkv,
                b.vattn,
                b.vy,
                b.vact,
                b.vparts,
                b.vpost,
                b.vmoments,
                b.embeds,
            ):
                if buffer.element_size() == 1:
                    buffer.view(torch.uint8).fill_(0x7F)
                else:
                    buffer.fill_(math.nan)
        engine.prefill(images, tokens)
        again.append(engine.buffers.embeds[: views * 256].clone())
    assert same_bits(again)
    return again[0].float()


@pytest.mark.parametrize("views", [1, 2, 3])
def test_the_tower_on_them_is_as_good_as_on_the_library(model, plain, views):
    from pi05_ros.backends.cuda import create

    true = model.embed_images(plain._pixels(case_of(views)[0])).flatten(0, 1)
    division = {"out": 2, "fc2": 4, "stages": 4, "early_trigger": 1, "fold": 0}
    folded = [division | {"fold": 1, "narrow_stages": 8}]
    forms = {
        "library": {"vision_kernels": "library"},
        "norm": {"vision_kernels": "hopper", "hopper_vision": [division]},
        "folded": {"vision_kernels": "hopper", "hopper_vision": folded},
    }
    error = {}
    for form, over in forms.items():
        engine = create(model, Precision("bf16", "bf16", "bf16"), views=3, tuning=over)
        assert bool(engine.prefix_stages.clusters) == (form != "library")
        assert (engine.weights.vision[0].fc1_affine is not None) == (form == "folded")
        tokens = image_tokens(engine, views)
        engine.close()
        assert float(cosine_similarity(tokens.flatten(), true.flatten(), dim=0)) > 0.9999
        error[form] = float((tokens - true).norm() / true.norm())
    print(f"{views} cameras: error {error}")
    assert error["folded"] < 1.1 * error["norm"]


@pytest.fixture(scope="module")
def coded(model):
    """Engines with vision in FP8 on both kinds of kernels, with the same scales."""
    from pi05_ros.backends.cuda import create

    engines = {}
    for kernels in ("library", "hopper"):
        engine = create(
            model, Precision("fp8", "bf16", "bf16"), views=3, tuning={"vision_kernels": kernels}
        )
        assert bool(engine.prefix_stages.clusters) == (kernels == "hopper")
        for views in (1, 2, 3):
            images, tokens = case_of(views)
            engine.sample(images, tokens, torch.zeros(50, 32, device="cuda"), 1)
        engines[kernels] = engine
    engines["hopper"].buffers.scales.copy_(engines["library"].buffers.scales)
    return engines


@pytest.mark.parametrize("views", [1, 2, 3])
def test_the_tower_in_fp8_is_as_good_as_its_format(coded, model, plain, views):
    from fp8_simulation import Simulation

    pixels = plain._pixels(case_of(views)[0])
    true = model.embed_images(pixels).flatten(0, 1)
    engine = coded["hopper"]
    simulated = Simulation(engine.weights, engine.buffers.scales).vision(pixels)
    error = {}
    for kernels, each in coded.items():
        tokens = image_tokens(each, views)
        error[kernels] = float((tokens - true).norm() / (simulated - true).norm())
    print(f"{views} cameras: error over that of simulated quantization {error}")
    assert 0.8 <= error["hopper"] <= 1.15
    assert error["hopper"] <= 1.05 * error["library"]


def test_the_tower_in_fp8_records_the_magnitudes_that_triton_does(coded):
    images, tokens = case_of(2)
    noise = torch.zeros(50, 32, device="cuda")
    found = {}
    for kernels, engine in coded.items():
        engine.start_calibration()
        engine.observe(images, tokens, noise)
        found[kernels] = engine.calibration(1).amax
        sites = [i for i, used in enumerate(engine.weights.inputs) if used]
    assert len(sites) == 4 * 27
    ratio = found["hopper"][sites] / found["library"][sites]
    assert float(ratio.min()) > 0.9
    assert float(ratio.max()) < 1.1
