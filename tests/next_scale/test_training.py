"""Training of tokenizers and predictors in 1D and 2D: learning, the start of the codebooks, averages, resuming."""

import copy

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset

from next_scale.checkpoint import from_pretrained, register_autoencoder, save_pretrained
from next_scale.errors import UserError
from next_scale.predictors import FAMILIES
from next_scale.quantizer import MultiScaleQuantizer
from next_scale.schedule import Schedule, StrideSchedule
from next_scale.tokenizer import Tokenizer
from next_scale.training import ExponentialAverage, Export, PredictorModule, TokenizerModule

SCHEDULES = {1: "1 2 4 8", 2: "1x1 2x2 4x4"}
SIDE = {1: 32, 2: 16}  # of a sample; the latent grid is a quarter


class Patches(nn.Module):
    """The smallest autoencoder: every patch of side 4 through one linear layer and back."""

    name = "patches"

    def __init__(self, dim: int = 1, latent_channels: int = 6):
        super().__init__()
        self.dim, self.latent_channels = dim, latent_channels
        self.enter = (nn.Conv1d, nn.Conv2d)[dim - 1](1, latent_channels, 4, 4)
        self.leave = (nn.ConvTranspose1d, nn.ConvTranspose2d)[dim - 1](latent_channels, 1, 4, 4)

    def encode(self, x):
        return self.enter(x)

    def decode(self, latent):
        return self.leave(latent)

    def to_config(self):
        return {"dim": self.dim, "latent_channels": self.latent_channels}


register_autoencoder("patches", Patches)


class Squared(nn.Module):
    """Mean squared error, with a linear discriminator where asked for."""

    def __init__(self, judge: int = 0):
        super().__init__()
        self.discriminator = nn.Linear(judge, 1) if judge else None

    def forward(self, autoencoder, x, latent):
        error = (autoencoder.decode(latent) - x).square().mean()
        return error, {"error": error.detach()}

    def adversarial(self, autoencoder, x, latent):
        fake = autoencoder.decode(latent)
        judged = -self.discriminator(fake.flatten(1)).mean()
        error = (fake - x).square().mean()
        return error + 0.01 * judged, {"error": error.detach(), "adversarial": judged.detach()}, fake

    def discriminator_loss(self, real, fake):
        return (1 + self.discriminator(fake.flatten(1))).relu().mean() + (
            1 - self.discriminator(real.flatten(1))
        ).relu().mean()


class Waves(Dataset):
    """Smooth samples whose two conditions say what they are."""

    def __init__(self, dim: int, count: int = 64):
        generator = torch.Generator().manual_seed(0)
        self.kind = torch.arange(count) % 4
        line = torch.linspace(0, 3, SIDE[dim])
        phase = 0.3 * torch.rand(count, 1, generator=generator)
        waves = torch.sin((self.kind[:, None] + 1) * line + phase)[:, None]  # (N, 1, side)
        self.samples = waves if dim == 1 else waves[..., None] * waves[:, :, None]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return {"sample": self.samples[index], "condition": {"kind": int(self.kind[index])}}


def module_for(dim=1, judge=False, **options):
    torch.manual_seed(0)
    settings = {"quantize_after": 20, "start_samples": 64, "lr": 1e-2, "warmup": 5, **options}
    quantizer = {"codebook_size": 16, "phis": 2, "revive": 0.0} | settings.pop("quantizer", {})
    objective = Squared(SIDE[dim] ** dim if judge else 0)
    return TokenizerModule(Patches(dim), objective, SCHEDULES[dim], quantizer, **settings)


def loader(dim=1, batch=32, **options):
    return DataLoader(Waves(dim), batch, **options)


def trainer_for(folder, steps, *callbacks, **options):
    settings = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings |= {"enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks)}
    settings |= {"num_sanity_val_steps": 0, "gradient_clip_val": 1.0, "log_every_n_steps": 1}
    return L.Trainer(max_steps=steps, callbacks=list(callbacks), default_root_dir=folder, **(settings | options))


class Record(L.Callback):
    """Everything that a training logs, step by step."""

    def __init__(self):
        self.values, self.steps, self.usage = [], [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.values.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        self.steps.append(trainer.global_step)
        if isinstance(module, TokenizerModule):
            self.usage.append(torch.stack([book.usage.clone() for book in module.tokenizer.quantizer.codebooks]))


def reconstruction_error(tokenizer, dim):
    x = Waves(dim).samples
    return (tokenizer.decode(tokenizer.encode(x)) - x).square().mean().item()


@pytest.mark.parametrize("options", [{}, {"quantizer": {"shared_codebook": True, "scale_dropout": 0.2}}], ids=str)
@pytest.mark.parametrize("dim", [1, 2])
def test_tokenizer_reaches_a_stated_loss(dim, options, tmp_path):
    """Through 16 codes a token, mean squared error falls to under a fifth of the samples' power in 120 steps."""
    module, record = module_for(dim, **options), Record()
    trainer_for(tmp_path, 120, record).fit(module, loader(dim, shuffle=True))
    assert reconstruction_error(module.tokenizer.eval(), dim) < 0.2 * Waves(dim).samples.square().mean().item()
    assert record.steps == list(range(1, 121))
    assert "train/quantizer" not in record.values[19] and "train/quantizer" in record.values[20]
    assert record.values[-1]["train/perplexity"] > 3


def test_codebooks_start_once_on_latents(tmp_path, monkeypatch):
    calls = []
    start = MultiScaleQuantizer.start

    def counted(self, latent, iterations=10):
        calls.append((trainer.global_step, len(latent)))
        start(self, latent, iterations)

    monkeypatch.setattr(MultiScaleQuantizer, "start", counted)
    for accumulate in (1, 2):
        trainer = trainer_for(tmp_path, 6, accumulate_grad_batches=accumulate)
        trainer.fit(module_for(quantize_after=3, start_samples=80), loader())
    assert calls == [(3, 96), (3, 96)]  # 80 samples take three batches, more than one epoch has


def test_starting_the_codebooks_leaves_the_epoch_alone(tmp_path):
    """The k-means start reads the same data while a loader with kept workers is in the middle of an epoch."""
    seen = []

    class Count(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            seen.append((trainer.current_epoch, batch_idx))

    module = module_for(quantize_after=3)
    data = loader(batch=16, num_workers=1, persistent_workers=True)
    trainer_for(tmp_path, 8, Count()).fit(module, data)
    assert seen == [(epoch, i) for epoch in range(2) for i in range(4)]


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_settled_training_is_the_decoders_alone(update, tmp_path):
    """Codebooks placed anew on the averaged encoder's latents, then nothing changes but the decoder."""
    module = module_for(settle_at=30, settle_samples=64, quantizer={"update": update, "revive": 0.05})
    states, average, record = [], ExponentialAverage(0.9), Record()

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 30:
                mean = average._average_model.module.tokenizer.state_dict()
                states.append({name: tensor.clone() for name, tensor in mean.items()})

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            states.append({name: tensor.clone() for name, tensor in module.tokenizer.state_dict().items()})

    trainer_for(tmp_path, 50, average, Watch(), record).fit(module, loader())
    before, mean, settled = states[29], states[30], states[31:]
    for name in mean:
        decoder = name.startswith("autoencoder.leave")
        assert all(torch.equal(state[name], settled[0][name]) for state in settled) != decoder, name
        if not decoder and "codebooks" not in name:  # the encoder settles on its average
            assert torch.equal(settled[0][name], mean[name])
        if "codebooks" in name:
            assert not torch.equal(settled[0][name], before[name])
    assert record.values[-1]["train/error"] < record.values[30]["train/error"]
    usage = torch.stack(record.usage[30:])
    assert torch.equal(usage, torch.ones_like(usage))
    assert average._average_model.n_averaged == 20
    with pytest.raises(UserError, match="settle_at"):
        module_for(settle_at=20)


@pytest.mark.parametrize("dim", [1, 2])
def test_adversarial_training(dim, tmp_path):
    """Two optimizers: a step is still one of the tokenizer, and each learning rate has its own warm-up and end."""
    module, record = module_for(dim, judge=True, quantize_after=4, adversarial_after=6, warmup=3), Record()
    first = module.objective.discriminator.weight.clone()
    watched = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            watched.append(torch.equal(module.objective.discriminator.weight, first))

    trainer_for(tmp_path, 12, record, Watch(), gradient_clip_val=None).fit(module, loader(dim))
    assert record.steps == list(range(1, 13))
    assert watched == [True] * 6 + [False] * 6
    assert "train/adversarial" not in record.values[5] and "train/adversarial" in record.values[6]
    assert "train/quantizer" not in record.values[3] and "train/quantizer" in record.values[4]
    for optimizer in module.trainer.optimizers:
        assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * 0.02)


def test_learning_rate_warms_up_and_decays(tmp_path):
    rates = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    module = module_for(lr=1.0, warmup=4, quantize_after=99, final_lr=0.1)
    trainer = trainer_for(tmp_path, 12, Watch())
    trainer.fit(module, loader())
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[8] == pytest.approx(0.55) and rates[4:] == sorted(rates[4:], reverse=True)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1)
    decayed, plain = trainer.optimizers[0].param_groups
    assert all(p.dim() > 1 for p in decayed["params"]) and plain["weight_decay"] == 0


def test_length_of_training_must_be_known(tmp_path):
    with pytest.raises(UserError, match="trainer.max_steps"):
        trainer_for(tmp_path, -1, max_epochs=-1).fit(module_for(), loader())


@pytest.mark.parametrize("update", ["ema", "gradient"])
@pytest.mark.parametrize("stop", [2, 8, 10])
def test_resumed_training_is_the_same_training(stop, update, tmp_path):
    """Interrupted before or after the codebooks' start, or once settled: the same steps, averages, codes, weights."""
    options = {"quantize_after": 4, "quantizer": {"update": update}} | ({"settle_at": 9} if stop == 10 else {})

    def run(steps, folder, resume=None):
        torch.manual_seed(5)  # k-means draws its first centres
        module, average, record = module_for(**options), ExponentialAverage(0.9), Record()
        keep = ModelCheckpoint(tmp_path / folder, "{step}", every_n_train_steps=2, save_top_k=-1)
        seed = Seed()
        trainer = trainer_for(tmp_path, steps, average, record, seed, keep)
        trainer.fit(module, loader(), ckpt_path=resume)
        return module, average, record

    class Seed(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            torch.manual_seed(trainer.global_step)

    whole, whole_average, whole_record = run(12, "whole")
    # max_steps belongs to the learning rate's schedule: interrupt by taking up a checkpoint of the same training
    resumed, average, record = run(12, "again", tmp_path / "whole" / f"step={stop}.ckpt")
    assert record.steps == whole_record.steps[stop:] == list(range(stop + 1, 13))
    for got, want in zip(record.values, whole_record.values[stop:], strict=True):
        assert got == want
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert all(torch.equal(a, b) for a, b in zip(record.usage, whole_record.usage[stop:], strict=True))
    assert stop == 10 or not torch.equal(record.usage[-1], torch.ones_like(record.usage[-1]))
    for name, tensor in whole_average._average_model.state_dict().items():
        assert torch.equal(tensor, average._average_model.state_dict()[name]), name
    assert average._average_model.n_averaged == (3 if stop == 10 else 8)  # anew from the start of the codebooks


def test_checkpoints_from_before_usage_was_kept_resume_too(tmp_path):
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)
    trainer_for(tmp_path, 4, keep).fit(module_for(quantize_after=1), loader())
    checkpoint = torch.load(tmp_path / "step=2.ckpt", weights_only=True)
    assert len(checkpoint.pop("codebook_usage")) == 4
    assert not any("usage" in name for name in checkpoint["state_dict"])
    torch.save(checkpoint, tmp_path / "old.ckpt")
    record = Record()
    trainer_for(tmp_path, 4, record).fit(module_for(quantize_after=1), loader(), ckpt_path=tmp_path / "old.ckpt")
    assert record.steps == [3, 4]


@pytest.mark.parametrize("half", [False, True])
def test_export_is_the_average(half, tmp_path):
    """What is written after a validation and at the end has the averaged weights, whatever training has meanwhile."""
    module, average = module_for(quantize_after=2), ExponentialAverage(0.9)
    written = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if (tmp_path / "out").exists():
                mean = copy.deepcopy(average._average_model.module.tokenizer.state_dict())
                written.append((from_pretrained(tmp_path / "out").state_dict(), mean))

    export = Export(str(tmp_path / "out"), half=half)
    trainer = trainer_for(tmp_path, 7, export, average, Watch(), val_check_interval=3, check_val_every_n_epoch=None)
    trainer.fit(module, loader(), loader())
    written = [written[0], (from_pretrained(tmp_path / "out").state_dict(), module.tokenizer.state_dict())]
    for got, want in written:
        assert list(got) == list(want)
        for name in got:
            torch.testing.assert_close(got[name], want[name].half().float() if half else want[name], atol=0, rtol=0)


def test_export_of_a_training_that_had_ended(tmp_path):
    """Resumed with no step left, as after a kill between the last checkpoint and the export: still the average."""
    average, keep = ExponentialAverage(0.9), ModelCheckpoint(tmp_path / "kept", save_last=True, every_n_train_steps=4)
    trainer_for(tmp_path, 4, Export(str(tmp_path / "out")), average, keep).fit(module_for(quantize_after=2), loader())
    once = from_pretrained(tmp_path / "out").state_dict()
    (tmp_path / "out/model.safetensors").unlink()
    again, average = module_for(quantize_after=2), ExponentialAverage(0.9)
    trainer = trainer_for(tmp_path, 4, Export(str(tmp_path / "out")), average)
    trainer.fit(again, loader(), ckpt_path=tmp_path / "kept/last.ckpt")
    torch.testing.assert_close(from_pretrained(tmp_path / "out").state_dict(), once, atol=0, rtol=0)


def test_no_export_without_a_folder(tmp_path):
    trainer_for(tmp_path, 1, Export(None)).fit(module_for(), loader())
    assert list(tmp_path.iterdir()) == []


class Tokens(Dataset):
    def __init__(self, tokenizer, dim):
        waves = Waves(dim)
        self.tokens, self.kind = tokenizer.encode(waves.samples), waves.kind

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return {"tokens": self.tokens[index], "condition": {"kind": int(self.kind[index])}}


@pytest.fixture(params=[1, 2])
def trained(request, tmp_path):
    """A tokenizer on its samples: dimension, tokenizer, folder of its checkpoint."""
    module = module_for(request.param)
    trainer_for(tmp_path, 60).fit(module, loader(request.param, shuffle=True))
    return request.param, module.tokenizer.eval(), save_pretrained(module.tokenizer, tmp_path / "tokenizer")


def test_predictor_reaches_a_stated_loss(trained, tmp_path):
    """From log 16 = 2.77 nats a token to below 1.2 in 80 steps; the export makes samples as its condition says."""
    dim, tokenizer, folder = trained
    torch.manual_seed(0)
    module = PredictorModule(
        str(folder),
        {"kind": [0, 1, 2, 3]},
        predictor={"width": 32, "depth": 2, "heads": 2, "condition_dropout": 0.1},
        sampling={"cfg": 1.0},
        lr=5e-3,
        warmup=10,
    )
    frozen = {name: tensor.clone() for name, tensor in module.frozen.state_dict().items()}
    data, record = DataLoader(Tokens(tokenizer, dim), 32, shuffle=True), Record()
    trainer = trainer_for(tmp_path, 80, Export(str(tmp_path / "out"), half=False), ExponentialAverage(0.9), record)
    trainer.fit(module, data, data)
    assert record.values[0]["train/loss"] > 2.4 and trainer.callback_metrics["val/loss"] < 1.2
    for k in range(len(SCHEDULES[dim].split())):
        names = {f"{stage}/{what}_scale_{k}" for stage in ("train", "val") for what in ("loss", "accuracy")}
        assert names <= set(trainer.callback_metrics)
    assert all(torch.equal(tensor, module.frozen.state_dict()[name]) for name, tensor in frozen.items())

    generator = from_pretrained(tmp_path / "out")
    assert generator.sampling.cfg == 1.0 and generator.condition_spec == {"kind": [0, 1, 2, 3]}
    samples, tokens = generator.generate({"kind": torch.arange(4).repeat(4)}, range(16))
    waves = Waves(dim)
    real = torch.stack([waves.samples[waves.kind == kind].mean(0) for kind in range(4)])
    nearest = (samples[:, None] - real).flatten(2).square().mean(2).argmin(1)
    assert (nearest == torch.arange(4).repeat(4)).float().mean() >= 0.75


def test_resumed_predictor_training_is_the_same_training(tmp_path):
    quantizer = MultiScaleQuantizer(Schedule.parse(SCHEDULES[1]), 6, 16)
    tokenizer = Tokenizer(Patches(1), quantizer).eval()
    folder = str(save_pretrained(tokenizer, tmp_path / "tokenizer"))

    def run(resume=None):
        torch.manual_seed(0)
        module = PredictorModule(
            folder, {"kind": [0, 1, 2, 3]}, {"width": 16, "depth": 1, "heads": 2, "condition_dropout": 0.0}
        )
        average, record = ExponentialAverage(0.9), Record()
        keep = ModelCheckpoint(tmp_path / "kept", "{step}", every_n_train_steps=4, save_top_k=-1)
        data = DataLoader(Tokens(tokenizer, 1), 32)
        trainer_for(tmp_path, 6, average, record, keep).fit(module, data, ckpt_path=resume)
        return module, average, record

    whole, whole_average, whole_record = run()
    resumed, average, record = run(tmp_path / "kept" / "step=4.ckpt")
    assert record.steps == [5, 6] and record.values == whole_record.values[4:]
    assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in whole.state_dict().items())
    assert average._average_model.n_averaged == whole_average._average_model.n_averaged == 6


def test_predictor_on_strides_takes_any_length(tmp_path):
    tokenizer = Tokenizer(Patches(1), MultiScaleQuantizer(StrideSchedule((2, 1)), 6, 16))
    save_pretrained(tokenizer, tmp_path / "tokenizer")
    module = PredictorModule(str(tmp_path / "tokenizer"), {}, {"width": 16, "depth": 1, "heads": 2})
    for length in (4, 8):
        out = module._loss({"tokens": torch.zeros(2, length * 3 // 2, dtype=torch.int64), "condition": {}})
        assert out.per_scale.shape == (2,) and module.predictor.grid == (length,)
    save_pretrained(module.model, tmp_path / "model")
    model = from_pretrained(tmp_path / "model")
    assert model.generate({}, [0])[1].shape == (1, 12)
    assert model.generate({}, [0], grid=(4,))[1].shape == (1, 6)


def test_tokens_of_a_tokenizer_can_be_trained_on():
    """They are ordinary tensors, not ones of inference mode, which autograd refuses."""
    tokenizer = Tokenizer(Patches(1), MultiScaleQuantizer(Schedule.parse(SCHEDULES[1]), 6, 16))
    table = nn.Embedding(16, 3)
    table(tokenizer.encode(Waves(1).samples)).sum().backward()
    assert table.weight.grad.abs().sum() > 0


def test_training_starts_from_the_whole_or_from_the_autoencoder_alone(tmp_path):
    source = module_for().tokenizer
    with torch.no_grad():
        source.autoencoder.enter.weight += 1
        source.quantizer.codebooks[0].weight += 1
    folder = str(save_pretrained(source, tmp_path))
    options = {"codebook_size": 16, "phis": 2}
    same = TokenizerModule(Patches(1), Squared(), SCHEDULES[1], options | {"scale_dropout": 0.1}, start_from=folder)
    other = TokenizerModule(Patches(1), Squared(), "1 3 8", options, start_from=folder)
    for module, codebooks in ((same, True), (other, False)):
        tokenizer = module.tokenizer
        assert torch.equal(tokenizer.autoencoder.enter.weight, source.autoencoder.enter.weight)
        weights = [t.quantizer.codebooks[0].weight for t in (tokenizer, source)]
        assert torch.equal(*weights) == codebooks
    with pytest.raises(UserError, match="a tokenizer of other sizes"):
        TokenizerModule(Patches(1, 4), Squared(), "1 3 8", options, start_from=folder)


def test_options_of_another_family_are_named(tmp_path):
    folder = str(save_pretrained(module_for().tokenizer, tmp_path))
    with pytest.raises(UserError, match="the predictor 'flow' cannot be built: .*codebook_head"):
        PredictorModule(folder, {}, {"width": 16, "depth": 1, "heads": 2, "codebook_head": True}, family="flow")


@pytest.mark.parametrize("family", [kind.name for kind in FAMILIES])
def test_families_train_in_mixed_precision(family, tmp_path):
    """In bf16 every family's loss is the one of full precision, nearly, and what the frozen tokenizer gives is it."""
    schedule = {"any_length": StrideSchedule((4, 2, 1)), "delay": Schedule.parse("8 8 8")}
    torch.manual_seed(0)
    quantizer = MultiScaleQuantizer(schedule.get(family, Schedule.parse(SCHEDULES[1])), 6, 16, phis=2)
    quantizer.start(torch.randn(64, 6, 8))
    tokenizer = Tokenizer(Patches(1), quantizer).eval()
    folder = str(save_pretrained(tokenizer, tmp_path / "tokenizer"))
    module = PredictorModule(folder, {"kind": [0, 1, 2, 3]}, {"width": 16, "depth": 1, "heads": 2}, family=family)
    waves = Waves(1)
    latent = tokenizer.autoencoder.encode(waves.samples[:8]).detach()
    batch = {"tokens": tokenizer.encode(waves.samples[:8]), "condition": {"kind": waves.kind[:8]}, "latent": latent}
    losses = []
    for mixed in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            out = module._loss(batch)
        out.loss.backward()
        losses.append(out.loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
