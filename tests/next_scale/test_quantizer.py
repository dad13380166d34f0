"""The multi-scale quantizer in 1D and 2D, with every option, and against what the published systems computed."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from next_scale.errors import UserError
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.resample import downsample, upsample
from next_scale.schedule import Schedule, StrideSchedule

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "goldens"
ONE, TWO = "1 2 3 6", "1x1 2x2 2x3 4x5"
C, V = 6, 32

OPTIONS = [
    {},
    {"shared_codebook": True},
    {"phis": 0},
    {"phis": 1},
    {"phis": 6},
    {"phis": 4, "phi_kernel": 5, "phi_ratio": 0.2},
    {"phis": 4, "phi_margin": 1 / 12},
    {"cosine": True},
    {"code_channels": 3},
    {"code_channels": 3, "shared_codebook": True, "cosine": True, "phis": 0},
    {"channels": 4},
    {"channels": 8, "code_channels": 2, "update": "gradient"},
    {"update": "gradient"},
    {"upsampling": "nearest"},
    {"upsampling": "linear"},
    {"scale_dropout": 0.5, "revive": 0.0},
]


def build(schedule=ONE, started=True, **options):
    torch.manual_seed(0)
    schedule = Schedule.parse(schedule) if isinstance(schedule, str) else schedule
    quantizer = MultiScaleQuantizer(schedule, C, V, **options).eval()
    if started:
        quantizer.start(latents(quantizer, 64, 1))
    return quantizer


def latents(quantizer, batch=3, seed=2, grid=None):
    """Random latents with a mean over the grid, as real ones have."""
    torch.manual_seed(seed)
    grid = grid or (quantizer.schedule.grid if isinstance(quantizer.schedule, Schedule) else (16,) * quantizer.dim)
    return torch.randn(batch, C, *grid) + 2 * torch.randn(batch, C, *[1] * len(grid))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("schedule", [ONE, TWO])
def test_all_paths_agree(schedule, options):
    """forward, encode, decode, step, teacher_forcing and the definition, for every option."""
    quantizer = build(schedule, **options)
    sizes, x = quantizer.schedule, latents(quantizer)
    tokens = quantizer.encode(x)
    assert tokens.shape == (3, sizes.length) and tokens.dtype == torch.int64
    assert 0 <= tokens.min() and tokens.max() < V

    out = quantizer(x)
    assert torch.equal(out.tokens, tokens)
    torch.testing.assert_close(out.quantized, quantizer.decode(tokens), atol=1e-5, rtol=1e-5)

    latent, inputs, definition = quantizer.initial_latent(3), [], []
    assert latent.shape == (3, quantizer.channels, *sizes.grid) and not latent.any()
    for k, ids in enumerate(sizes.split(tokens)):
        if k:
            definition.append(downsample(latent, sizes.sizes[k]).flatten(2).transpose(1, 2))
        latent, shown = quantizer.step(latent, ids, k)
        torch.testing.assert_close(quantizer.project_out(latent), quantizer.decode(tokens, k + 1), atol=1e-6, rtol=1e-5)
        if shown is not None:
            inputs.append(shown)
    assert shown is None
    inputs = torch.cat(inputs, 1)
    assert inputs.shape == (3, sizes.length - sizes.counts[0], quantizer.channels)
    assert torch.equal(inputs, torch.cat(definition, 1))
    assert torch.equal(inputs, quantizer.teacher_forcing(tokens))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("schedule", [ONE, TWO])
def test_configuration_round_trip(schedule, options):
    quantizer = build(schedule, **options)
    config = json.loads(json.dumps(quantizer.to_config()))
    again = MultiScaleQuantizer.from_config(config).eval()
    again.load_state_dict(quantizer.state_dict())
    x = latents(quantizer)
    assert again.to_config() == quantizer.to_config() and torch.equal(again.encode(x), quantizer.encode(x))
    assert torch.equal(again.decode(quantizer.encode(x)), quantizer.decode(quantizer.encode(x)))


@pytest.mark.parametrize("schedule", [ONE, TWO])
def test_encode_is_the_algorithm(schedule):
    """VAR's algorithm 1 spelled out with one codebook and one phi."""
    quantizer = build(schedule, shared_codebook=True, phis=1)
    x, sizes = latents(quantizer), quantizer.schedule
    weight, conv = quantizer.codebook(0).weight, quantizer.phis[0].conv
    residual, tokens = x, []
    for size in sizes.sizes:
        small = downsample(residual, size)
        distance = (small.movedim(1, -1)[..., None, :] - weight).square().sum(-1)  # (B, *size, V)
        tokens.append(distance.argmin(-1).flatten(1))
        up = upsample(weight[distance.argmin(-1)].movedim(-1, 1), sizes.grid, quantizer.upsampling)
        residual = residual - (0.5 * up + 0.5 * conv(up))
    tokens = torch.cat(tokens, 1)
    assert torch.equal(quantizer.encode(x), tokens)
    torch.testing.assert_close(quantizer.decode(tokens), x - residual, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "scales, phis, margin, want",
    [
        (10, 4, 1 / 12, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]),  # VAR's four
        (10, 4, None, [0, 0, 0, 1, 1, 2, 2, 3, 3, 3]),
        (10, 10, None, list(range(10))),
        (10, 1, None, [0] * 10),
        (10, 0, None, [None] * 10),
        (16, 6, None, [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 5, 5, 5]),  # SAT's six
        (5, 6, None, [0, 1, 2, 4, 5]),  # more phi's than scales
        (1, 2, None, [0]),
        (4, 4, 1 / 12, [0, 1, 2, 3]),
    ],
)
def test_which_phi_a_scale_uses(scales, phis, margin, want):
    schedule = Schedule(tuple((s + 1,) for s in range(scales)))
    quantizer = MultiScaleQuantizer(schedule, 2, 2, phis=phis, phi_margin=margin)
    got = [quantizer.phi_index(k) for k in range(scales)]
    assert got == want


@pytest.mark.parametrize("options", [{}, {"update": "gradient"}, {"channels": 4, "code_channels": 2}], ids=str)
@pytest.mark.parametrize("schedule", [ONE, TWO])
def test_gradients(schedule, options):
    """Straight through to the latent; commitment to the latent; codebook loss to what makes the codes."""
    quantizer = build(schedule, phis=2, **options)
    x = latents(quantizer).requires_grad_()
    out = quantizer(x)
    weight = torch.randn_like(out.quantized)
    (straight,) = torch.autograd.grad((out.quantized * weight).sum(), x, retain_graph=True)
    inside = x if quantizer.channels == C else quantizer.project_in(x)
    (want,) = torch.autograd.grad((quantizer.project_out(inside) * weight).sum(), x)
    torch.testing.assert_close(straight, want)

    out.loss.backward()
    assert x.grad.abs().sum() > 0
    assert all(phi.conv.weight.grad.abs().sum() > 0 for phi in quantizer.phis)
    learned = [book.weight for book in quantizer.codebooks if quantizer.update == "gradient"]
    learned += [layer.weight for layer in quantizer.code_out]
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in learned)


@pytest.mark.parametrize("commitment", [0.25, 1.0])
@pytest.mark.parametrize("schedule", [ONE, TWO])
def test_loss_is_vars(schedule, commitment):
    """Mean over scales of beta MSE(sg(sum so far), f) + MSE(sum so far, sg(f)), in value and in gradient."""
    quantizer = build(schedule, commitment=commitment)
    x = latents(quantizer).requires_grad_()
    out = quantizer(x)
    sums = [quantizer.decode(out.tokens, k + 1).detach() for k in range(quantizer.scales)]
    want = torch.stack([(1 + commitment) * F.mse_loss(s, x.detach()) for s in sums]).mean()
    torch.testing.assert_close(out.loss, want)
    (grad,) = torch.autograd.grad(out.loss, x)
    gradient = torch.stack([2 * commitment * (x - s) / x.numel() for s in sums]).mean(0)
    torch.testing.assert_close(grad, gradient)


@pytest.mark.parametrize("options", [{}, {"shared_codebook": True}, {"code_channels": 3}, {"cosine": True}], ids=str)
@pytest.mark.parametrize("schedule", [ONE, TWO])
def test_kmeans_start_lowers_distortion(schedule, options):
    before, after = build(schedule, started=False, **options), build(schedule, **options)
    x = latents(before, 32)
    if "code_channels" in options:  # random projections lead out of the codes yet: compare where codes are looked up
        pairs = [(q._codes(downsample(x, before.schedule.sizes[0]), 0), q.codebook(0)) for q in (before, after)]
        error = [(vectors - book(ids)).square().mean().item() for (vectors, ids), book in pairs]
    else:
        error = [(q.decode(q.encode(x)) - x).square().mean().item() for q in (before, after)]
    assert error[1] < 0.6 * error[0]


@pytest.mark.parametrize("options", [{"update": "ema"}, {"update": "gradient"}, {"shared_codebook": True}], ids=str)
@pytest.mark.parametrize("schedule", [ONE, TWO])
def test_learning_lowers_distortion_without_a_kmeans_start(schedule, options):
    quantizer = build(schedule, started=False, phis=2, decay=0.9, **options).train()
    parameters = list(quantizer.parameters())
    optimizer = torch.optim.Adam(parameters, 3e-2)
    first = quantizer(latents(quantizer, 32, 100)).loss.item()
    for step in range(40):
        out = quantizer(latents(quantizer, 32, step))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    assert quantizer.eval()(latents(quantizer, 32, 100)).loss.item() < 0.6 * first


def test_dead_codes_are_revived():
    """A codebook with all codes but one out of reach is in use again after some steps, at every scale."""
    quantizer = build(ONE, phis=0, decay=0.8)
    for book in quantizer.codebooks:
        book.weight[1:] += 1000
    x = latents(quantizer, 256)
    assert quantizer(x).perplexity.max() < 1.5
    quantizer.train()
    for step in range(150):
        quantizer(latents(quantizer, 256, step))
    out = quantizer.eval()(x)
    assert all(len(ids.unique()) > V / 2 for ids in quantizer.schedule.split(out.tokens))
    assert (out.perplexity > V / 4).all()


@pytest.mark.parametrize("schedule", [ONE, TWO])
def test_scale_dropout_trains_on_partial_pyramids(schedule):
    quantizer = build(schedule, scale_dropout=1.0, revive=0.0, phis=2, update="gradient")
    x = latents(quantizer, 64)
    torch.testing.assert_close(quantizer(x).quantized, quantizer.decode(quantizer.encode(x)), atol=1e-5, rtol=1e-5)
    quantizer.train()
    out = quantizer(x)
    partial = torch.stack([quantizer.decode(out.tokens, k + 1) for k in range(quantizer.scales)])  # (K, B, C, *grid)
    distance = (partial - out.quantized).flatten(2).abs().amax(2)  # (K, B)
    kept = distance.argmin(0) + 1
    assert distance.min(0).values.max() < 1e-5  # each sample is the sum of its first scales
    assert set(kept.tolist()) == set(range(1, quantizer.scales + 1))
    assert torch.equal(out.tokens, quantizer.eval().encode(x))  # the tokens are all there

    quantizer.scale_dropout = 0.25
    share = (quantizer.train()._scales_kept(1000, "cpu") < quantizer.scales).float().mean()
    assert 0.25 * 0.75 - 0.06 < share < 0.25 * 0.75 + 0.06


def test_codes_survive_their_own_update():
    """In training the sum is made of the codes that were chosen, not of what the update makes of them."""
    quantizer = build(ONE, phis=0, decay=0.1, revive=0.9).train()
    x = latents(quantizer)
    want = build(ONE, phis=0)(x)
    torch.testing.assert_close(quantizer(x).quantized, want.quantized)


def test_codebooks_learn_only_where_asked():
    for learn, training in ((True, True), (False, True), (True, False)):
        quantizer = build(ONE, decay=0.5).train(training)
        before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
        quantizer(latents(quantizer), learn=learn)
        same = [torch.equal(tensor, before[name]) for name, tensor in quantizer.state_dict().items() if "books" in name]
        assert not any(same) if learn and training else all(same)


def test_usage_is_told_apart_by_scale():
    """Perplexity is that of each scale's codes: 1 where one code is used, n where n are used equally."""
    quantizer = build("1 2 4", phis=0, update="gradient")
    for book in quantizer.codebooks:
        book.weight.data.zero_()
        book.weight.data[:, 0] = torch.arange(V) - 10.0
    x = torch.zeros(8, C, 4)
    x[:, 0] = torch.arange(8)[:, None] * 1.0
    out = quantizer(x)
    torch.testing.assert_close(out.perplexity, torch.tensor([8.0, 1.0, 1.0]))
    quantizer.train()(x)
    assert [int((book.usage < 1 - 1e-4).sum()) for book in quantizer.codebooks] == [V - 8, V - 1, V - 1]


@pytest.mark.parametrize("dim", [1, 2])
def test_strides_serve_any_length(dim):
    """SNAC's setting: strides 8, 4, 2, 1, nearest upsampling, 8-dimensional cosine codes, no phi's."""
    options = {"code_channels": 4, "cosine": True, "phis": 0, "upsampling": "nearest", "dim": dim}
    quantizer = build(StrideSchedule((8, 4, 2, 1)), **options)
    for side in (8, 24, 32):
        grid = (side,) if dim == 1 else (side, 16)
        x = latents(quantizer, 2, grid=grid)
        tokens, out = quantizer.encode(x), quantizer(x)
        assert tokens.shape[1] == quantizer.schedule.at(grid).length and torch.equal(out.tokens, tokens)
        torch.testing.assert_close(quantizer.decode(tokens, grid=grid), out.quantized, atol=1e-5, rtol=1e-5)
        coarsest = (side // 8) * (2 if dim == 2 else 1)
        assert quantizer.teacher_forcing(tokens, grid).shape[1] == tokens.shape[1] - coarsest
    again = MultiScaleQuantizer.from_config(json.loads(json.dumps(quantizer.to_config())))
    assert again.schedule == quantizer.schedule and again.dim == dim
    with pytest.raises(UserError, match="coarsest stride"):
        quantizer.encode(latents(quantizer, 1, grid=(12,) * dim))
    if dim == 1:  # so many tokens are one length only
        assert torch.equal(quantizer.decode(tokens), quantizer.decode(tokens, grid=grid))
        with pytest.raises(UserError, match="no pyramid of strides"):
            quantizer.decode(tokens[:, 1:])
    else:
        with pytest.raises(UserError, match="grid="):
            quantizer.decode(tokens)


def test_strides_as_snac_writes_them():
    """avg_pool by the stride, repeat_interleave back: the same residuals as its published loop."""
    quantizer = build(StrideSchedule((4, 2, 1)), phis=0, upsampling="nearest")
    x = latents(quantizer, 2)
    residual, tokens = x, []
    for k, stride in enumerate((4, 2, 1)):
        pooled = F.avg_pool1d(residual, stride)
        ids = torch.cdist(pooled.transpose(1, 2), quantizer.codebook(k).weight[None]).argmin(-1)
        residual = residual - quantizer.codebook(k)(ids).transpose(1, 2).repeat_interleave(stride, 2)
        tokens.append(ids)
    assert torch.equal(quantizer.encode(x), torch.cat(tokens, 1))


def test_mixed_precision_training_keeps_full_precision_here():
    quantizer = build(ONE, channels=4).train()
    x = latents(quantizer).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = quantizer(x)
    assert out.loss.dtype == out.quantized.dtype == torch.float32
    out.quantized.sum().backward()
    assert torch.equal(build(ONE, channels=4)(x.detach().float()).tokens, out.tokens)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"update": "sgd"}, "'ema' or 'gradient'"),
        ({"phi_kernel": 4}, "odd"),
        ({"upsampling": "cubic"}, "nearest or linear"),
        ({"upsampling": "sinc"}, "nearest or linear"),
    ],
)
def test_refused_options(change, message):
    with pytest.raises(UserError, match=message):
        MultiScaleQuantizer(Schedule.parse(ONE), C, V, **change)


def test_refused_grids():
    with pytest.raises(UserError, match="1 or 2 dimensions"):
        MultiScaleQuantizer(Schedule.parse("1x1x1 2x2x2"), C, V)
    quantizer = build(ONE)
    with pytest.raises(UserError, match=re.escape("grid of (6,), got (7,)")):
        quantizer.encode(torch.zeros(1, C, 7))
    with pytest.raises(UserError, match="grid of"):
        quantizer.decode(torch.zeros(1, 12, dtype=torch.int64), grid=(7,))


def golden(name):
    """A published case: its configuration, its tensors, and a function that fills a weight from its key."""
    spec = importlib.util.spec_from_file_location("fill_weights", GOLDENS / "fill_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with safe_open(GOLDENS / f"{name}.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict

    def fill(key, *shape):
        return torch.from_numpy(module.fill(key, shape))

    return config, tensors, fill


def published_var(config, fill):
    """The quantizer of a published image tokenizer."""
    sizes = tuple((s, s) for s in config["patch_nums"])
    channels, codes, phis = config["latent_channels"], config["vocab_size"], config["share_quant_resi"]
    options = {"phi_ratio": config["quant_resi"], "phi_margin": 1 / 12 if phis == 4 else None}
    quantizer = MultiScaleQuantizer(Schedule(sizes), channels, codes, shared_codebook=True, phis=phis, **options)
    state = {"codebooks.0.weight": fill("vae.quantize.embedding.weight", codes, channels)}
    for i in range(phis):
        key = f"vae.quantize.quant_resi.qresi_ls.{i}."
        state[f"phis.{i}.conv.weight"] = fill(key + "weight", channels, channels, 3, 3)
        state[f"phis.{i}.conv.bias"] = fill(key + "bias", channels)
    quantizer.load_state_dict(state)
    return quantizer.eval()


def published_sat(config, fill):
    """The quantizer of a published audio tokenizer."""
    inner, outer, codes = config["latent_dim"], config["dimension"], config["bins"]
    kernels = config["phi_kernel"]
    quantizer = MultiScaleQuantizer(
        Schedule(tuple((s,) for s in config["multi_scale"])),
        outer,
        codes,
        channels=inner,
        phis=len(kernels),
        phi_kernel=kernels[0],
        phi_ratio=config["quant_resi"],
    )
    prefix = "sat.quantizer.vq."
    state = {
        "project_in.weight": fill(prefix + "project_in.weight", inner, outer)[..., None],
        "project_in.bias": fill(prefix + "project_in.bias", inner),
        "project_out.weight": fill(prefix + "project_out.weight", outer, inner)[..., None],
        "project_out.bias": fill(prefix + "project_out.bias", outer),
    }
    for i, kernel in enumerate(kernels):
        state[f"phis.{i}.conv.weight"] = fill(f"{prefix}quant_resi.qresi_ls.{i}.weight", inner, inner, kernel)
        state[f"phis.{i}.conv.bias"] = fill(f"{prefix}quant_resi.qresi_ls.{i}.bias", inner)
    for k in range(quantizer.scales):
        state[f"codebooks.{k}.weight"] = fill(f"{prefix}layers.{k}._codebook.embed", codes, inner)
    quantizer.load_state_dict(state)
    return quantizer.eval()


@pytest.mark.parametrize("name", ["var_tiny", "var_tiny_shared_aln", "aar_tiny"])
def test_parity_with_the_published_systems(name):
    """From the published latent: the same tokens, and quantized latent and predictor inputs within 1e-4."""
    config, case, fill = golden(name)
    quantizer = (published_sat if name == "aar_tiny" else published_var)(config, fill)
    tokens = torch.cat([case[f"tokens.{k}"] for k in range(quantizer.scales)], 1)
    assert torch.equal(quantizer.encode(case["latent"]), tokens)
    near = {"atol": 1e-4, "rtol": 0}
    torch.testing.assert_close(quantizer.decode(tokens), case["latent_quantized"], **near)
    torch.testing.assert_close(quantizer(case["latent"]).quantized, case["latent_quantized"], **near)
    torch.testing.assert_close(quantizer.teacher_forcing(tokens), case["teacher_forcing_input"], **near)


def test_the_core_names_no_modality():
    """next_scale/ knows tensors, scales and steps only."""
    words = re.compile(r"audio|image|waveform|pixel|spectrogram", re.IGNORECASE)
    found = [
        f"{path.name}:{number}: {line.strip()}"
        for path in sorted((ROOT / "next_scale").rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if words.search(line)
    ]
    assert not found
