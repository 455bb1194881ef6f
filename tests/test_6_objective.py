"""Chapter 6: the flow-matching loss, and the training step of train.py."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import flowclip
import train
from tests import oracles
from tests import strategies as draw


@pytest.mark.spec("FLOW-1", "FLOW-2")
@given(draw.image_shapes, draw.seeds)
def test_the_path(shape, seed):
    x0, x1, t = (tensor.double() for tensor in draw.pair(shape, seed))
    xt, v = flowclip.interpolate(x0, x1, t)
    for b, time in enumerate(t.tolist()):
        for a, z, u, w in zip(*(tensor[b].flatten().tolist() for tensor in (x0, x1, xt, v))):
            assert (u, w) == pytest.approx(oracles.path(a, z, time), abs=1e-12)
    assert torch.equal(flowclip.interpolate(x0, x1, torch.zeros_like(t))[0], x0)
    assert torch.equal(flowclip.interpolate(x0, x1, torch.ones_like(t))[0], x1)
    forward, back = (
        flowclip.interpolate(x0, x1, t + 1e-3)[0],
        flowclip.interpolate(x0, x1, t - 1e-3)[0],
    )
    torch.testing.assert_close((forward - back) / 2e-3, v)


@pytest.mark.spec("FLOW-3")
@given(draw.image_shapes, draw.seeds)
def test_loss_is_the_mean_square(shape, seed):
    x0, x1, t = draw.pair(shape, seed)
    seen = {}

    def model(xt, t, context, mask):
        seen.update(xt=xt, t=t, context=context, mask=mask)
        return (0.5 * xt).bfloat16()

    loss = flowclip.flow_matching_loss(model, x0, "Z", "mask", x1=x1, t=t)
    xt = (1 - t)[:, None, None, None] * x0 + t[:, None, None, None] * x1
    expected = oracles.mean_square(
        (0.5 * xt).bfloat16().flatten().tolist(), (x1 - x0).flatten().tolist()
    )
    assert loss.dtype == torch.float32 and loss.ndim == 0
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(seen["xt"], xt)
    assert torch.equal(seen["t"], t) and seen["context"] == "Z" and seen["mask"] == "mask"
    assert flowclip.flow_matching_loss(lambda *_: x1 - x0, x0, None, None, x1=x1, t=t) == 0


@pytest.mark.spec("FLOW-4")
def test_noise_and_time_are_drawn_unless_given():
    x0, seen = torch.zeros(4000, 1, 1, 2), {}

    def model(xt, t, context, mask):
        seen.update(xt=xt, t=t)
        return torch.zeros_like(xt)

    flowclip.flow_matching_loss(model, x0, None, None)
    t, x1 = seen["t"], seen["xt"] / seen["t"][:, None, None, None]
    assert t.min() >= 0 and t.max() <= 1 and len(t.unique()) > 3900
    counts = torch.histc(t, 10, 0, 1)
    assert (counts - 400).abs().max() < 5 * math.sqrt(360), counts
    assert x1.mean().abs() < 5 / math.sqrt(8000) and (x1.var() - 1).abs() < 5 * math.sqrt(2 / 8000)
    assert ((x1.abs() < 1).float().mean() - 0.6827).abs() < 5 * math.sqrt(0.22 / 8000), (
        "normal, not only in its moments"
    )
    assert torch.corrcoef(x1.flatten(1).T)[0, 1].abs() < 5 / math.sqrt(4000), "each pixel by itself"
    before = torch.get_rng_state()
    flowclip.flow_matching_loss(
        model, x0, None, None, x1=torch.ones_like(x0), t=torch.full((4000,), 0.5)
    )
    assert torch.equal(torch.get_rng_state(), before) and (seen["xt"] == 0.5).all()


@pytest.mark.spec("FLOW-5")
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("m, s", [(0.7, 0.5), (-0.3, 2.0)])
def test_least_squares_finds_the_gaussian_closed_form(t, m, s):
    x0, x1 = m + s * torch.randn(200_000, 1).double(), torch.randn(200_000, 1).double()
    xt, v = flowclip.interpolate(x0, x1, torch.full((200_000,), t).double())
    intercept, slope = (
        torch.linalg.lstsq(torch.cat([torch.ones_like(xt), xt], 1), v).solution.flatten().tolist()
    )
    best = oracles.gaussian_velocity(m, s, t)
    assert (intercept, slope) == pytest.approx(best, abs=0.03)

    def loss(intercept, slope):
        model = lambda xt, *_: intercept + slope * xt  # noqa: E731
        return flowclip.flow_matching_loss(
            model, x0, None, None, x1=x1, t=torch.full((200_000,), t).double()
        )

    for change in (-0.1, 0.1):
        assert loss(*best) < min(loss(best[0] + change, best[1]), loss(best[0], best[1] + change))


# ---- train.py ----


CAPTIONS = ["a red car", "a very long sentence", "dog"]


def make_trainer(make_model, seed=0, batches=None, model=None, **changes):
    g = torch.Generator().manual_seed(7)
    images, labels = (
        torch.randint(0, 256, (24, 3, 8, 8), generator=g, dtype=torch.uint8),
        torch.arange(24) % 3,
    )
    batches = batches or train.Batches(images, labels, 8, seed)
    model = model or make_model(seed=1)
    options = {"lr": 1e-2, "device": "cpu", "precision": "fp32", "seed": seed} | changes
    caption_fn = lambda labels: [CAPTIONS[n] for n in labels.tolist()]  # noqa: E731
    return train.TextConditionalTrainer(model, draw.StandIn(), batches, caption_fn, **options)


@pytest.mark.spec("TRAIN-1", "TRAIN-6")
def test_two_steps_equal_two_by_hand(make_model):
    trainer = make_trainer(make_model, weight_decay=3.0, text_drop_prob=0.0)
    by_hand, average = copy.deepcopy(trainer.model), draw.flat(trainer.model)
    moments = {name: (0.0, 0.0) for name, _ in by_hand.named_parameters()}
    for step, (images, labels) in zip((1, 2), trainer.dataloader):
        captions = trainer.caption_fn(labels)
        loss = trainer.train_step(images, captions)
        rand = train.generator("cpu", 0, step - 1, 1)
        x1, (t, _) = torch.randn(images.shape, generator=rand), torch.rand(2, 8, generator=rand)
        Z, mask = draw.StandIn()(captions)
        by_hand.zero_grad()
        expected = flowclip.flow_matching_loss(by_hand, images, Z, mask, x1=x1, t=t)
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
        with torch.no_grad():
            for name, weight in by_hand.named_parameters():
                new, *moments[name] = oracles.adamw_step(
                    weight, weight.grad, *moments[name], step, lr=1e-2, decay=3.0
                )
                weight.copy_(new)
                sure = weight.grad.abs() > 1e-4  # elsewhere the sign of rounding decides
                mine = trainer.model.get_parameter(name)
                torch.testing.assert_close(
                    mine[sure], new[sure], atol=1e-4, rtol=1e-3, msg=f"{name}, step {step}"
                )
                weight.copy_(mine)  # so that what is unsure does not add up
        b = oracles.ema_decay(0.999, step)
        average = b * average + (1 - b) * draw.flat(trainer.model)
        torch.testing.assert_close(draw.flat(trainer.ema_model), average, atol=1e-6, rtol=1e-5)


@pytest.mark.spec("TRAIN-1")
def test_the_documented_defaults(monkeypatch):
    assert train.TextConditionalTrainer.__init__.__defaults__ == (1e-4, 0.01, 0.1, None)
    monkeypatch.setattr("sys.argv", ["train.py"])
    config = train.parse_args()
    assert (config.lr, config.weight_decay, config.text_drop) == (1e-4, 0.01, 0.1)
    assert (config.batch_size, config.epochs, config.warmup) == (64, 30, 0)
    assert (config.data, config.clip_weights) == ("cifar10", "openai")
    assert config.clip == "ViT-B-32-quickgelu"


@pytest.mark.spec("TRAIN-1")
def test_batches_are_whole_and_each_image_keeps_its_label():
    values = torch.arange(10, dtype=torch.uint8)
    batches = train.Batches(values.view(10, 1, 1, 1).expand(-1, 1, 2, 2), values.long(), 4)
    assert len(batches) == len(list(batches)) == 2
    for images, labels in batches:
        assert len(labels) == 4
        assert torch.equal(flowclip.denormalize_images(images)[:, 0, 1, 1].long(), labels)


@pytest.mark.spec("TRAIN-2")
@pytest.mark.parametrize("p", [0.0, 0.1, 1.0])
def test_the_rate_of_dropped_texts(make_model, monkeypatch, p):
    trainer, drops = make_trainer(make_model, text_drop_prob=p), []
    drop_text = flowclip.drop_text
    monkeypatch.setattr(
        flowclip, "drop_text", lambda *args: drops.append(args[-1]) or drop_text(*args)
    )
    seen, loss = [], flowclip.flow_matching_loss
    monkeypatch.setattr(
        flowclip,
        "flow_matching_loss",
        lambda *args, **given: seen.append(args[2:]) or loss(*args, **given),
    )
    images, labels = torch.zeros(200, 3, 8, 8), torch.zeros(200, dtype=torch.long)
    for _ in range(10):
        trainer.train_step(images, trainer.caption_fn(labels))
    null, real = draw.StandIn()("")
    for drop, (Z, mask) in zip(drops, seen):  # what was decided reaches the loss
        assert torch.equal(mask[drop].sum(1), real.sum(1).expand(int(drop.sum())))
        assert (
            torch.equal(Z[drop][:, :2], null[:, :2].expand(int(drop.sum()), -1, -1))
            and (mask[~drop].sum(1) > 2).all()
        )
    drops = torch.stack(drops).float()
    assert abs(drops.mean() - p) <= 5 * math.sqrt(p * (1 - p) / 2000)
    if p == 0.1:
        assert drops.std(dim=1).min() > 0, "one coin a sample, not one a batch"
        assert not torch.equal(drops[0], drops[1])


@pytest.mark.spec("TRAIN-3")
def test_clip_meets_each_caption_once(make_model):
    trainer = make_trainer(make_model)
    table = trainer.text_encoder.table.clone()
    trainer.train(3)
    assert sorted(trainer.text_encoder.asked) == sorted(["", *CAPTIONS])
    assert torch.equal(trainer.text_encoder.table, table)
    for caption, Z, mask in zip(["", *CAPTIONS], *draw.StandIn()(["", *CAPTIONS])):
        assert torch.equal(trainer.texts[caption], Z[mask]), caption


@pytest.mark.spec("TRAIN-3")
@given(st.lists(st.sampled_from(CAPTIONS), min_size=1, max_size=6))
def test_each_row_gets_the_vectors_of_its_caption(make_model, captions):
    """Padded to the longest of them."""
    trainer = make_trainer(make_model)
    context, mask = trainer.context_of([*captions, ""])
    texts = [trainer.texts[caption] for caption in [*captions, ""]]
    assert context.shape[:2] == mask.shape == (len(texts), max(map(len, texts)))
    for Z, real, text in zip(context, mask, texts):
        assert torch.equal(Z[real], text) and real.tolist() == sorted(real.tolist(), reverse=True)


def test_a_step_never_waits_for_the_device(make_model):
    """On a GPU, reading a number makes the CPU wait; a step and its batch read none."""
    trainer, images = make_trainer(make_model), torch.zeros(8, 3, 8, 8, dtype=torch.uint8)
    trainer.dataloader, reads = train.Batches(images, torch.zeros(8).long(), 4), []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            if op.name() in ("aten::_local_scalar_dense", "aten::nonzero"):
                reads.append(op.name())
            return op(*args, **(kwargs or {}))

    with Watch():
        for images, labels in trainer.dataloader:
            loss = trainer.train_step(images, [CAPTIONS[0]] * len(labels))
        assert reads == [] and trainer.step == 2
        loss.item()
    assert reads == ["aten::_local_scalar_dense"], "the watch works"


@pytest.mark.spec("TRAIN-4")
def test_the_same_seed_gives_the_same_run(make_model):
    runs = {}
    for name, seed, noise in (("a", 0, 1), ("b", 0, 2), ("c", 1, 1)):
        torch.manual_seed(noise)  # the global state plays no part
        trainer = make_trainer(make_model, seed=seed)
        runs[name] = trainer.train(2), draw.flat(trainer.ema_model)
    assert runs["a"][0] == runs["b"][0] and torch.equal(runs["a"][1], runs["b"][1])
    assert runs["a"][0] != runs["c"][0]
    batches = train.Batches(torch.zeros(9, 1, 2, 2, dtype=torch.uint8), torch.arange(9), 3)
    orders = []
    for epoch in (0, 1, 0):
        batches.epoch = epoch
        orders.append(torch.cat([labels for _, labels in batches]).tolist())
    assert orders[0] == orders[2] != orders[1] and sorted(orders[0]) == list(range(9))


@pytest.mark.spec("TRAIN-4", "TRAIN-7")
@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_resumed_run_repeats_the_uninterrupted_one(make_model, tmp_path, stop):
    whole = make_trainer(make_model, metrics=tmp_path / "whole.csv")
    whole.train(3)
    first = make_trainer(make_model)
    first.train(3, max_steps=stop)
    first.save_checkpoint(tmp_path / "checkpoint.pt")
    second = make_trainer(make_model)
    with torch.no_grad():
        second.model.final_linear.weight.add_(1)  # whatever it was
    second.resume(tmp_path / "checkpoint.pt")
    assert second.step == stop
    second.train(1, max_steps=stop - 1)
    assert second.step == stop, "a limit that is passed already"
    second.train(3 - second.epoch)
    assert second.losses == whole.losses and second.step == whole.step == 9
    for name in ("model", "ema_model"):
        assert torch.equal(draw.flat(getattr(second, name)), draw.flat(getattr(whole, name))), name


@pytest.mark.spec("TRAIN-5")
@pytest.mark.parametrize(
    "warmup, expected", [(0, [1, 1, 1]), (2, [0.5, 1, 1]), (4, [0.25, 0.5, 0.75])]
)
def test_warmup(make_model, warmup, expected):
    trainer = make_trainer(make_model, warmup=warmup, weight_decay=0.0)
    rates, start = [], draw.flat(trainer.model)
    for images, labels in trainer.dataloader:
        trainer.train_step(images, trainer.caption_fn(labels))
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        if len(rates) == 1:  # AdamW's first step moves each weight by the rate
            assert (draw.flat(trainer.model) - start).abs().max() == pytest.approx(
                1e-2 * expected[0], rel=0.02
            )
    assert rates == pytest.approx([1e-2 * e for e in expected])


@pytest.mark.spec("TRAIN-6")
@pytest.mark.parametrize("ema", [0.0, 0.5, 0.9])
def test_the_moving_average(make_model, ema):
    trainer = make_trainer(make_model, ema=ema)
    average = draw.flat(trainer.model)
    for s, (images, labels) in enumerate(trainer.dataloader, start=1):
        trainer.train_step(images, trainer.caption_fn(labels))
        b = oracles.ema_decay(ema, s)
        average = b * average + (1 - b) * draw.flat(trainer.model)
        torch.testing.assert_close(draw.flat(trainer.ema_model), average, atol=1e-6, rtol=1e-5)


@pytest.mark.spec("TRAIN-1")
def test_the_loss_falls_and_any_iterable_serves(make_model):
    labels = torch.arange(16) % 3
    dataset = torch.utils.data.TensorDataset(
        (labels - 1.0)[:, None, None, None].expand(16, 3, 8, 8), labels
    )
    torch.manual_seed(0)
    model = flowclip.TextConditionalDiT(8, 2, embed_dim=32, depth=1, num_heads=2, context_dim=12)
    trainer = make_trainer(
        make_model,
        batches=torch.utils.data.DataLoader(dataset, batch_size=16),
        model=model,
        lr=3e-3,
    )
    losses = trainer.train(100)
    assert (
        losses is trainer.losses and len(losses) == 100 and sum(losses[-5:]) < 0.5 * sum(losses[:5])
    ), losses
    with pytest.raises(ValueError, match="no batch"):
        make_trainer(make_model, batches=iter([])).train(1)
