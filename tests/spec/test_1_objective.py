"""Chapter 1: the flow-matching loss, and the training step."""

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import flowclip
from tests.spec import oracles
from tests.spec import strategies as draw
from tests.spec.compare import (
    close,
    equal,
    follows_normal,
    follows_uniform,
    from_no_grid,
    unrelated,
    within_chance,
)


@pytest.mark.spec("FLOW-1")
@given(draw.image_shapes, draw.seeds)
def test_the_path(shape, seed):
    x0, x1, t = (tensor.double() for tensor in draw.pair(shape, seed))
    xt = flowclip.interpolate(x0, x1, t)[0]
    for b, time in enumerate(t.tolist()):
        pixels = zip(x0[b].flatten().tolist(), x1[b].flatten().tolist())
        expected = [oracles.path(a, z, time)[0] for a, z in pixels]
        close(f"x_t of sample {b}, t = {time:.4g},", xt[b].flatten(), expected, atol=1e-12)


@pytest.mark.spec("FLOW-2")
@given(draw.image_shapes, draw.seeds)
def test_the_velocity(shape, seed):
    x0, x1, t = (tensor.double() for tensor in draw.pair(shape, seed))
    close("v", flowclip.interpolate(x0, x1, t)[1], x1 - x0, atol=1e-12)


@pytest.mark.spec("FLOW-3")
@given(draw.image_shapes, draw.seeds)
def test_loss_is_the_mean_square(shape, seed):
    x0, x1, t = draw.pair(shape, seed)
    seen = {}

    def model(xt, t, context, mask):
        seen.update(xt=xt, t=t, context=context, mask=mask)
        return (0.5 * xt).bfloat16()

    loss = flowclip.flow_matching_loss(model, x0, "Z", "mask", x1=x1, t=t)
    xt, v = flowclip.interpolate(x0, x1, t)
    close("x_t, which the model is given,", seen["xt"], xt)
    equal("t, which the model is given,", seen["t"], t)
    told = seen["context"], seen["mask"]
    assert told == ("Z", "mask"), f"for the text the model is given {told}"
    said = (0.5 * xt).bfloat16().flatten().tolist()
    assert loss.dtype == torch.float32, f"the loss is in {loss.dtype}"
    close("the loss", loss, oracles.mean_square(said, v.flatten().tolist()), 1e-6, 1e-4)
    zero = flowclip.flow_matching_loss(lambda *_: v, x0, None, None, x1=x1, t=t)
    close("the loss of a model that says v", zero, 0, atol=1e-12)


def drawn(x0, **given):
    """-> the xt and t that flow_matching_loss shows the model."""
    seen = []

    def model(xt, t, context, mask):
        seen.extend((xt, t))
        return torch.zeros_like(xt)

    flowclip.flow_matching_loss(model, x0, None, None, **given)
    return seen


@pytest.mark.spec("FLOW-4")
def test_noise_is_normal_and_its_own_everywhere():
    """At t = 1/2 from a black image, x_t is half the noise."""
    half = torch.full((2000,), 0.5)
    x1 = 2 * drawn(torch.zeros(2000, 5, 2, 3), t=half)[0]
    follows_normal("a number of x_1", x1)
    from_no_grid("x_1", x1)
    unrelated("pixels of x_1", x1.flatten(1))
    x1 = 2 * drawn(torch.zeros(20, 5, 24, 32), t=half[:20])[0]
    unrelated("x_1 of two samples", x1.flatten(1).T)


@pytest.mark.spec("FLOW-4")
def test_times_are_uniform_one_a_sample():
    xt, t = drawn(torch.zeros(4000, 1, 1, 2))
    follows_uniform("t", t, 0, 1)
    from_no_grid("t", t)
    unrelated("t of one sample and the next", torch.stack([t[:-1], t[1:]], 1))
    unrelated("t and the signs of x_1", torch.stack([t, *xt.flatten(1).sign().T], 1))


@pytest.mark.spec("FLOW-4")
def test_times_reach_both_ends_and_batches_differ():
    t = drawn(torch.zeros(200_000, 1, 1, 1))[1]
    assert t.min() < 1e-4 and t.max() > 1 - 1e-4, f"t lies in [{t.min():.4g}, {t.max():.4g}]"
    means = torch.stack([drawn(torch.zeros(12, 1, 1, 1))[1].mean() for _ in range(200)])
    deviation = 1 / 12  # of the mean of twelve uniform numbers
    within_chance("the deviation of the mean time of a batch of twelve",
                  means.std(), deviation, deviation / math.sqrt(398))  # fmt: skip


@pytest.mark.spec("FLOW-4")
@pytest.mark.parametrize("name", ["x1", "t"])
def test_what_is_given_costs_no_randomness(name):
    """With x_1 given, large images cost as much as small ones; with t, many as much as few."""
    states = []
    for shape in ((4, 2, 8, 4), (2, 4, 8, 4)) if name == "t" else ((4, 1, 2, 2), (4, 3, 8, 8)):
        torch.manual_seed(0)
        x0, x1, t = draw.pair(shape, 0)
        drawn(x0, **{name: x1 if name == "x1" else t})
        states.append(torch.get_rng_state())
    assert torch.equal(*states), f"{name} is given, and yet drawn"


@pytest.mark.spec("FLOW-4")
def test_what_is_given_is_not_drawn():
    x0, x1, t = draw.pair((4, 2, 3, 3), 0)
    before = torch.get_rng_state()
    xt, seen = drawn(x0, x1=x1, t=t)
    assert torch.equal(torch.get_rng_state(), before), "the random state has changed"
    equal("t", seen, t)
    close("x_t", xt, flowclip.interpolate(x0, x1, t)[0])


@pytest.mark.spec("FLOW-5")
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("m, s", [(0.7, 0.5), (-0.3, 2.0)])
def test_the_gaussian_closed_form_has_the_least_loss(t, m, s):
    x0, x1 = m + s * torch.randn(200, 250).double(), torch.randn(200, 250).double()
    best = oracles.gaussian_velocity(m, s, t)

    def loss(intercept, slope):
        model = lambda xt, *_: intercept + slope * xt  # noqa: E731
        times = torch.full((200,), t).double()
        return flowclip.flow_matching_loss(model, x0, None, None, x1=x1, t=times).item()

    least = loss(*best)
    for change in (-0.1, 0.1):
        for other in ((best[0] + change, best[1]), (best[0], best[1] + change)):
            assert least < loss(*other), (
                f"E[v | x_t] = {best[0]:.3f} + {best[1]:.3f} x_t has the loss {least:.5f}; "
                f"{other[0]:.3f} + {other[1]:.3f} x_t has less, {loss(*other):.5f}"
            )


places = st.tuples(st.integers(-2, 2), st.integers(-2, 2))


@pytest.mark.spec("FLOW-6")
@settings(max_examples=6)
@given(st.lists(places, min_size=2, max_size=3, unique=True), draw.seeds)
def test_of_few_images_the_softmax_over_them_has_the_least_loss(images, seed):
    """Images of two pixels; other velocities forget one of them, move all, or pull to a side."""
    g, n = torch.Generator().manual_seed(seed), 100 * len(images)
    x0, x1 = torch.tensor(images).double().repeat(100, 1), torch.randn(n, 2, generator=g).double()
    t = 0.1 + 0.8 * torch.rand(n, generator=g).double()

    def loss(images, pull=0.0):
        def model(xt, t, context, mask):
            asked = zip(xt.tolist(), t.tolist())
            return torch.tensor([oracles.mean_velocity(*one, images) for one in asked]) + pull

        return flowclip.flow_matching_loss(model, x0, None, None, x1=x1, t=t).item()

    least = loss(images)
    for name, other in {
        "one image forgotten": loss(images[1:]),
        "all images moved": loss([(a + 0.2, b + 0.2) for a, b in images]),
        "a pull to one side": loss(images, 0.3),
        "a pull to the other": loss(images, -0.3),
    }.items():
        assert least < other, f"the softmax has the loss {least:.5f}, with {name} {other:.5f}"


# ---- The training step: train.py, or the trainer of another file ----
CAPTIONS = ["a red car", "a very long sentence", "dog"]


class TwoNumbers(torch.nn.Module):
    """v = a x_t + b, with gradients known by hand; it remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(2.0).double())
        self.b = torch.nn.Parameter(torch.tensor(-1.0).double())
        self.given = []

    def forward(self, xt, t, context, mask):
        if torch.is_grad_enabled():
            given_tensors = (xt.detach().double(), t.double(), context, mask)
            self.given.append(tuple(u.clone() for u in given_tensors))
        return self.a * xt + self.b

    def numbers(self):
        return torch.stack([self.a.detach(), self.b.detach()])


def noise_of(x0, xt, t):
    """x_1, from the definition of x_t."""
    t = t[:, None, None, None]
    return (xt - (1 - t) * x0.double()) / t


def gradient(weights, x0, xt, t):
    """[FLOW-3] of TwoNumbers -> the loss, and its derivatives by a and b."""
    a, b = weights.tolist()
    error = a * xt + b - (noise_of(x0, xt, t) - x0)
    return error.square().mean(), torch.stack([(2 * error * xt).mean(), (2 * error).mean()])


@pytest.fixture(scope="session")
def new_trainer(of_train):
    """new_trainer(model, **options) -> a trainer on the CPU in float32."""
    Trainer = of_train("TextConditionalTrainer")

    def new(model, batches=(), **options):
        defaults = {"device": "cpu", "precision": "fp32"}
        caption_fn = lambda labels: [CAPTIONS[n] for n in labels.tolist()]  # noqa: E731
        named = defaults | {"caption_fn": caption_fn} | options
        return Trainer(model, draw.StandIn(), batches, **named)

    return new


def images_of(step, B=8, scale=1.0):
    """-> images that differ from step to step, and their captions."""
    g = torch.Generator().manual_seed(step)
    return scale * torch.randn(B, 5, 2, 3, generator=g), [CAPTIONS[n % 3] for n in range(B)]


SIZES = [1, 30, 0.1, 10, 0.01, 3]  # of the images: their gradients differ by factors of millions


def follow_by_hand(trainer, lr, decay):
    """Each step against AdamW's equations: the loss, and both weights after it."""
    model, m, u = trainer.model, torch.zeros(2).double(), torch.zeros(2).double()
    for step, scale in enumerate(SIZES, start=1):
        images, captions = images_of(step, scale=scale)
        weights = model.numbers()
        loss = trainer.train_step(images, captions)
        xt, t, *_ = model.given[-1]
        expected, grad = gradient(weights, images.double(), xt, t)
        close(f"the loss of step {step}", loss, expected, rtol=1e-3)
        new, m, u = oracles.adamw_step(weights, grad, m, u, step, lr, decay)
        moved, expected = ((after - weights) / lr for after in (model.numbers(), new))
        close(f"the move of (a, b) in step {step}, in units of the rate,", moved, expected,
              atol=2e-3, rtol=1e-3)  # fmt: skip


@pytest.mark.spec("TRAIN-1")
@pytest.mark.parametrize("lr, decay", [(0.1, 3.0), (0.05, 0.0)])
def test_steps_of_adamw(new_trainer, lr, decay):
    trainer = new_trainer(TwoNumbers(), lr=lr, weight_decay=decay)
    follow_by_hand(trainer, lr, decay)


@pytest.mark.spec("TRAIN-1")
def test_the_rate_and_the_decay_unless_given(new_trainer):
    follow_by_hand(new_trainer(TwoNumbers()), 1e-4, 0.01)


@pytest.mark.spec("TRAIN-1")
def test_the_noise_and_the_times_of_training(new_trainer):
    """[FLOW-4]: from black images, x_t / t is the noise."""
    trainer = new_trainer(TwoNumbers())
    trainer.train_step(torch.zeros(2000, 5, 2, 3), 2000 * ["dog"])
    xt, t, *_ = trainer.model.given[-1]
    x1 = noise_of(torch.zeros(()), xt, t)
    follows_normal("a number of x_1", x1)
    follows_uniform("t", t, 0, 1)
    from_no_grid("t", t)
    unrelated("t and the pixels of x_1", torch.cat([t[:, None], x1.flatten(1)], 1))
    unrelated("t of one sample and the next", torch.stack([t[:-1], t[1:]], 1))
    trainer.train_step(torch.zeros(20, 5, 24, 32), 20 * ["dog"])
    xt, t, *_ = trainer.model.given[-1]
    unrelated("x_1 of two samples", noise_of(torch.zeros(()), xt, t).flatten(1).T)


@pytest.mark.spec("TRAIN-1")
def test_the_documented_recipe(of_train):
    config = of_train("Config")()
    expected = {"lr": 1e-4, "weight_decay": 0.01, "batch_size": 64, "epochs": 30}
    for name, value in expected.items():
        found = getattr(config, name)
        assert found == value, f"{name} is {found}, expected {value}"


@pytest.mark.spec("TRAIN-1")
def test_batches_are_whole_and_as_the_data_are(of_train):
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (10, 5, 6, 3), dtype=torch.uint8, generator=g)
    batches = list(of_train("Batches")(pixels, torch.arange(10), 4))
    sizes = [len(labels) for _, labels in batches]
    assert sizes == [4, 4], f"batches of {sizes}, expected [4, 4] of ten images"
    for images, labels in batches:
        close("the images of a batch", images, pixels[labels] / 127.5 - 1)


def coins(trainer, B, steps):
    """-> [steps, B] of 0 and 1, which texts were lost; t; x_1. The images are black."""
    for _ in range(steps):
        trainer.train_step(torch.zeros(B, 3, 2, 2), B * ["a very long sentence"])
    null, lost = draw.StandIn()("")[0][0, :2], []
    for _, _, context, mask in trainer.model.given:
        bare = (mask.sum(1) == 2) & (context[:, :2] == null).all((1, 2))
        kept = mask.sum(1) == 6
        assert (bare | kept).all(), "neither the text, nor the null text with its mask"
        lost.append(bare.double())
    xt, t = (torch.stack(parts) for parts in list(zip(*trainer.model.given))[:2])
    x1 = torch.stack([noise_of(torch.zeros(()), *pair).flatten(1) for pair in zip(xt, t)])
    return torch.stack(lost), t, x1


@pytest.mark.spec("TRAIN-2")
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0, None])
def test_the_rate_of_lost_texts(new_trainer, p):
    options = {} if p is None else {"text_drop_prob": p}  # 0.1 unless it is given
    lost, *_ = coins(new_trainer(TwoNumbers(), **options), 500, 6)
    p = 0.1 if p is None else p
    within_chance("the share of lost texts", lost.mean(), p, math.sqrt(p * (1 - p) / 3000))


@pytest.mark.spec("TRAIN-2")
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_each_coin_is_its_own(new_trainer, p):
    """It goes together with nothing: neither the time, the noise, nor another coin."""
    (lost,), (t,), (x1,) = coins(new_trainer(TwoNumbers(), text_drop_prob=p), 4000, 1)
    together = torch.cat([lost[:, None], t[:, None], (t[:, None] - 0.5).abs(), x1], 1)
    unrelated("the coin (0), t (1), |t - 1/2| and the pixels of x_1", together, to_first=True)
    unrelated("the coins of one sample and the next", torch.stack([lost[:-1], lost[1:]], 1))
    counts, expected = lost.view(100, 40).sum(1), math.sqrt(40 * p * (1 - p))
    within_chance("the deviation of the number of lost texts among forty",
                  counts.std(), expected, expected / math.sqrt(198))  # fmt: skip


@pytest.mark.spec("TRAIN-2")
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_the_number_of_lost_texts_is_chance_too(new_trainer, p):
    """Not always the same share of a batch, and none lost or kept for sure."""
    lost, *_ = coins(new_trainer(TwoNumbers(), text_drop_prob=p), 20, 150)
    deviation = math.sqrt(p * (1 - p) / 3000)
    within_chance("the share of lost texts in batches of twenty", lost.mean(), p, deviation)
    expected = math.sqrt(20 * p * (1 - p))
    within_chance("the deviation of the number of lost texts in a batch of twenty",
                  lost.sum(1).std(), expected, expected / math.sqrt(298))  # fmt: skip


def batches_of(count=3, B=8):
    return [(images_of(n, B)[0].clamp(-1, 1), (torch.arange(B) + n) % 3) for n in range(count)]


@pytest.mark.spec("TRAIN-3")
def test_clip_meets_each_caption_once(new_trainer):
    trainer = new_trainer(TwoNumbers(), batches_of())
    encoder = trainer.text_encoder
    before = encoder.table.clone()
    trainer.train(3)
    asked = sorted(encoder.asked)
    assert asked == sorted(["", *CAPTIONS]), f"CLIP was asked for {asked} in three epochs"
    equal("the encoder's weights after training", encoder.table, before)


@pytest.mark.spec("TRAIN-3")
@given(st.lists(
    st.lists(st.sampled_from([*CAPTIONS, "two cats", "a", "one red dog", "ship"]),
             min_size=1, max_size=6), min_size=1, max_size=4,
))  # fmt: skip
def test_each_row_gets_the_real_tokens_of_its_caption(new_trainer, batches):
    """Padded to the longest of a batch, or of that and the null text."""
    trainer = new_trainer(TwoNumbers(), text_drop_prob=0.0)
    for captions in batches:
        trainer.train_step(torch.zeros(len(captions), 3, 2, 2), captions)
        _, _, context, mask = trainer.model.given[-1]
        Z, real = draw.StandIn()(captions)
        longest, found = int(real.sum(1).max()), context.shape[1]
        assert found == longest, f"{found} tokens, the longest text has {longest}"
        equal("the mask that the model is given", mask, real[:, :longest])
        equal("the real tokens that the model is given", context[mask], Z[real])
    asked = sorted(trainer.text_encoder.asked)
    assert asked == sorted({"", *sum(batches, [])}), f"CLIP was asked for {asked}"


@pytest.mark.spec("TRAIN-4")
def test_noise_times_and_coins_are_those_of_seed_and_step(new_trainer):
    runs = {}
    for name, seed, state in (("a", 0, 1), ("b", 0, 2), ("c", 1, 1)):
        torch.manual_seed(state)  # the global state plays no part
        trainer = new_trainer(TwoNumbers(), seed=seed, text_drop_prob=0.5)
        for _ in range(12):
            trainer.train_step(*images_of(0, B=16))
        runs[name] = trainer.model.given
    for step in range(12):
        for n, what in enumerate(["x_t", "t", "Z", "the mask"]):
            here = f"{what} of step {step + 1}, of the same seed,"
            close(here, runs["b"][step][n], runs["a"][step][n])
        assert not torch.equal(runs["a"][step][1], runs["c"][step][1]), "another seed, the same t"
    for n, what in enumerate(["noise", "times"]):
        for one, other in ((0, 1), (1, 2), (0, 3)):
            same = torch.equal(runs["a"][one][n], runs["a"][other][n])
            assert not same, f"steps {one + 1} and {other + 1} have the same {what}"
    lengths = {tuple(mask.sum(1).tolist()) for _, _, _, mask in runs["a"]}
    assert len(lengths) > 1, "all steps have the same coins"


@pytest.mark.spec("TRAIN-4")
def test_the_same_seed_gives_the_same_losses(new_trainer, make_model):
    losses = []
    for seed, state in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(state)
        trainer = new_trainer(make_model(seed=1), small_batches(), seed=seed, lr=1e-2)
        losses.append(list(trainer.train(2)))
    equal("the losses of the same seed", losses[1], losses[0])
    assert losses[0] != losses[2], f"another seed, the same losses {losses[0]}"


@pytest.mark.spec("TRAIN-4")
def test_the_loss_of_an_epoch_is_the_mean_of_its_steps(new_trainer, make_model):
    by_epochs, by_steps = (new_trainer(make_model(seed=1), small_batches()) for _ in range(2))
    by_epochs.train(2)
    losses = [
        by_steps.train_step(images, [CAPTIONS[n] for n in labels.tolist()])
        for _ in range(2) for images, labels in small_batches()
    ]  # fmt: skip
    means = [sum(float(loss) for loss in losses[n : n + 3]) / 3 for n in (0, 3)]
    close("the losses of two epochs of three steps", by_epochs.losses, means)


@pytest.mark.spec("TRAIN-4")
def test_the_order_of_an_epoch(of_train):
    def order(seed, epoch):
        torch.manual_seed(len(orders))
        pixels = torch.zeros(9, 1, 2, 2, dtype=torch.uint8)
        batches = of_train("Batches")(pixels, torch.arange(9), 3, seed)
        batches.epoch = epoch
        orders.append(torch.cat([labels for _, labels in batches]).tolist())
        return orders[-1]

    orders = []
    assert order(0, 1) == order(0, 1), f"the same seed and epoch, two orders: {orders}"
    assert sorted(orders[0]) == list(range(9)), f"not each image once: {orders[0]}"
    for seed, epoch in ((0, 0), (1, 1), (0, 2)):
        assert order(seed, epoch) != orders[0], f"seed {seed}, epoch {epoch}: the same order"


@pytest.mark.spec("TRAIN-4")
def test_training_leaves_the_global_random_state(new_trainer):
    trainer = new_trainer(TwoNumbers(), batches_of())
    state = torch.get_rng_state()
    trainer.train(1)
    assert torch.equal(torch.get_rng_state(), state), "the global random state has changed"


def small_batches():
    g = torch.Generator().manual_seed(7)
    return [(2 * torch.rand(8, 3, 8, 8, generator=g) - 1, torch.arange(8) % 3) for _ in range(3)]


@pytest.mark.spec("TRAIN-5")
@pytest.mark.parametrize("warmup", [0, 1, 2, 4, 100])
def test_warmup(new_trainer, warmup):
    """The moves beside those of a trainer without it; tiny ones, so that all else stays equal."""

    def moves(**option):
        torch.manual_seed(0)
        trainer = new_trainer(TwoNumbers(), lr=1e-7, weight_decay=0.0, **option)
        path = [trainer.model.numbers()]
        for _ in range(6):
            trainer.train_step(*images_of(0))
            path.append(trainer.model.numbers())
        return torch.stack(path).diff(dim=0)

    expected = [[min(1, (s + 1) / max(1, warmup))] * 2 for s in range(6)]
    close("[step, weight]: the rate, as a share of lr,", moves(warmup=warmup) / moves(), expected,
          atol=1e-3)  # fmt: skip


@pytest.mark.spec("TRAIN-5")
@pytest.mark.parametrize("warmup, cooldown, total", [(0, 3, 6), (4, 4, 6), (0, 0, 6), (2, 3, 9)])
def test_cooldown(new_trainer, warmup, cooldown, total):
    """The moves beside those of a trainer at a constant rate."""

    def moves(**option):
        torch.manual_seed(0)
        trainer = new_trainer(TwoNumbers(), lr=1e-7, weight_decay=0.0, **option)
        path = [trainer.model.numbers()]
        for _ in range(6):
            trainer.train_step(*images_of(0))
            path.append(trainer.model.numbers())
        return torch.stack(path).diff(dim=0)

    found = moves(warmup=warmup, cooldown=cooldown, total_steps=total) / moves()
    rise = [(i + 1) / warmup if warmup else 1 for i in range(6)]
    fall = [(total - i) / cooldown if cooldown else 1 for i in range(6)]
    expected = [[min(1, up, down)] * 2 for up, down in zip(rise, fall)]
    close("[step, weight]: the rate, as a share of lr,", found, expected, atol=1e-3)


@pytest.mark.spec("TRAIN-6")
@pytest.mark.parametrize("ema", [0.0, 0.5, 0.9, 0.999])
def test_the_moving_average(new_trainer, ema):
    trainer = new_trainer(TwoNumbers(), lr=0.1, ema=ema)
    average = trainer.model.numbers()
    for s in range(1, 41):
        trainer.train_step(*images_of(s))
        b = oracles.ema_decay(ema, s)
        average = b * average + (1 - b) * trainer.model.numbers()
        close(f"the averaged weights after step {s}", draw.flat(trainer.ema_model), average)


@pytest.mark.spec("TRAIN-6")
def test_a_decay_of_0_999_unless_told(of_train):
    default = inspect.signature(of_train("TextConditionalTrainer")).parameters["ema"].default
    assert default == 0.999, f"ema is {default} unless told, expected 0.999"


@pytest.mark.spec("TRAIN-4", "TRAIN-5", "TRAIN-7")
@pytest.mark.parametrize("stop", [2, 3, 5])
def test_order_and_warm_up_across_a_stop(new_trainer, of_train, make_model, tmp_path, stop):
    """Seven images in batches of two, three steps an epoch; the rate rises over eight steps.

    Captions are asked for in the order of the batches.
    """
    g = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (7, 3, 8, 8), dtype=torch.uint8, generator=g)

    def new(order):
        def caption_fn(labels):
            order.append(labels.tolist())
            return [CAPTIONS[n % 3] for n in labels.tolist()]

        batches = of_train("Batches")(pixels, torch.arange(7), 2, 4)
        options = {"lr": 1e-2, "warmup": 8, "caption_fn": caption_fn, "text_drop_prob": 0.3}
        return new_trainer(make_model(seed=1), batches, **options)

    def of_epoch(n):
        batches = of_train("Batches")(pixels, torch.arange(7), 2, 4)
        batches.epoch = n
        return [labels.tolist() for _, labels in batches]

    order = []
    whole, first, second = new(order), new([]), new([])
    whole.train(3)
    epochs = [of_epoch(n) for n in range(3)]
    assert order == sum(epochs, []), f"the order of three epochs is {order}"
    assert epochs[0] != epochs[1] != epochs[2], f"the order of two epochs is the same: {epochs}"
    first.train(3, max_steps=stop)
    first.save_checkpoint(tmp_path / "checkpoint.pt")
    second.resume(tmp_path / "checkpoint.pt")
    second.train(3 - stop // 3)
    equal("the losses of the epochs", second.losses, whole.losses)
    for name in ("model", "ema_model"):
        resumed, uninterrupted = (draw.flat(getattr(each, name)) for each in (second, whole))
        equal(f"{name} at the end of a run resumed after step {stop}", resumed, uninterrupted)


@pytest.mark.spec("TRAIN-1", "TRAIN-6")
def test_steps_of_a_whole_model_equal_those_by_hand(new_trainer, make_model):
    """AdamW's equations on every weight, and every average, with what the model was given."""
    lr, decay, ema = 1e-2, 30.0, 0.15
    model, seen = make_model(seed=1), []
    model.register_forward_pre_hook(lambda _, given_tensors: seen.append(given_tensors))
    trainer = new_trainer(model, lr=lr, weight_decay=decay, ema=ema, text_drop_prob=0.0)
    by_hand = make_model(seed=1)
    names, mine = zip(*trainer.model.named_parameters())
    weights, averages = list(by_hand.parameters()), list(trainer.ema_model.parameters())
    moments = [(torch.zeros(()), torch.zeros(())) for _ in weights]
    for step, (images, labels) in zip((1, 2, 3), small_batches()):
        before = [average.clone() for average in averages]
        loss = trainer.train_step(images, [CAPTIONS[n] for n in labels.tolist()])
        xt, t, Z, mask = seen[-1]
        by_hand.zero_grad()
        v = noise_of(images, xt.double(), t.double()) - images
        expected = (by_hand(xt, t, Z, mask) - v.float()).square().mean()
        expected.backward()
        close(f"the loss of step {step}", loss, expected, rtol=1e-4)
        with torch.no_grad():
            for n, (name, weight) in enumerate(zip(names, weights)):
                new, *moments[n] = oracles.adamw_step(
                    weight, weight.grad, *moments[n], step, lr, decay
                )
                sure = weight.grad.abs() > 1e-3  # elsewhere the sign of rounding decides
                close(f"{name}, step {step}", mine[n][sure], new[sure], atol=1e-4, rtol=1e-3)
                decayed = weight * (1 - lr * decay)
                close(f"{name}, step {step}, less its decay", mine[n], decayed, atol=2 * lr)
                b = oracles.ema_decay(ema, step)
                average = b * before[n] + (1 - b) * mine[n]
                close(f"the average of {name} after step {step}", averages[n], average)
                weight.copy_(mine[n])  # so that what is unsure does not add up


@pytest.mark.spec("TRAIN-7")
@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_resumed_run_repeats_the_uninterrupted_one(new_trainer, make_model, tmp_path, stop):
    def new(seed):
        return new_trainer(make_model(seed=seed), small_batches(), lr=1e-2)

    whole, first, second = new(1), new(1), new(2)  # the second begins elsewhere
    whole.train(3)
    first.train(3, max_steps=stop)
    first.save_checkpoint(tmp_path / "checkpoint.pt")
    second.resume(tmp_path / "checkpoint.pt")
    for name in ("model", "ema_model"):
        given_back, saved = (draw.flat(getattr(each, name)) for each in (second, first))
        equal(f"{name}, given back by a checkpoint,", given_back, saved)
    second.train(3 - stop // 3)
    equal("the losses of the epochs", second.losses, whole.losses)
    for name in ("model", "ema_model"):
        resumed, uninterrupted = (draw.flat(getattr(each, name)) for each in (second, whole))
        equal(f"{name} at the end of a run resumed after step {stop}", resumed, uninterrupted)


@pytest.mark.spec("TRAIN-8")
def test_the_first_prediction_is_the_mean_velocity(new_trainer):
    """Of images whose mean is far from 0, and another at each pixel and channel."""
    torch.manual_seed(3)
    images = (torch.rand(4, 2, 8, 8) * torch.linspace(-1, 0.2, 128).view(2, 8, 8)).clamp(-1, 1)
    model = flowclip.TextConditionalDiT(8, 4, 2, embed_dim=16, depth=1, num_heads=2, context_dim=12)
    first = []
    model.register_forward_hook(lambda _, __, v: first.append(v.detach().clone()))
    trainer = new_trainer(model, lr=1e-3)
    for _ in range(2):
        trainer.train_step(images, CAPTIONS[:1] * 4)
    mean = torch.stack([images[:, :, i : i + 4, j : j + 4] for i in (0, 4) for j in (0, 4)])
    expected = -mean.mean(dim=(0, 1)).repeat(1, 2, 2).expand(4, -1, -1, -1)
    close("the first v", first[0], expected)
    assert not first[1].allclose(expected, atol=1e-5), "from then on it is learned"


@pytest.mark.spec("TRAIN-8")
def test_a_model_that_has_learned_something_keeps_its_bias(new_trainer, make_model):
    model = make_model(seed=4)
    before = model.final_linear.bias.detach().clone()
    trainer = new_trainer(model, lr=1e-9, weight_decay=0.0)
    trainer.train_step(torch.ones(4, 3, 8, 8), CAPTIONS[:1] * 4)
    close("final_linear.bias", trainer.model.final_linear.bias, before)


# ---- Beyond the statements ----
def test_the_path_begins_and_ends_exactly():
    x0, x1, t = draw.pair((3, 2, 2, 2), 0)
    assert torch.equal(flowclip.interpolate(x0, x1, torch.zeros_like(t))[0], x0)
    assert torch.equal(flowclip.interpolate(x0, x1, torch.ones_like(t))[0], x1)


def test_the_documented_defaults(of_train):
    defaults = of_train("TextConditionalTrainer").__init__.__defaults__
    assert defaults[:4] == (1e-4, 0.01, 0.1, None)
    config = of_train("Config")()
    assert (config.text_drop, config.ema, config.warmup, config.seed) == (0.1, 0.999, 0, 0)
    assert (config.data, config.clip_weights) == ("cifar10", "openai")
    assert config.clip == "ViT-B-32-quickgelu"


def test_a_limit_that_is_passed_already(new_trainer):
    trainer = new_trainer(TwoNumbers(), batches_of())
    trainer.train(1, max_steps=2)
    trainer.train(1, max_steps=1)
    assert trainer.step == 2


def test_the_averaged_weights_are_what_is_loaded_to_sample(new_trainer, make_model, tmp_path):
    trainer = new_trainer(make_model(seed=1), small_batches())
    trainer.train(1)
    trainer.save_checkpoint(tmp_path / "checkpoint.pt")
    model, _ = flowclip.load_checkpoint(tmp_path / "checkpoint.pt")
    assert torch.equal(draw.flat(model), draw.flat(trainer.ema_model))
    assert not torch.equal(draw.flat(model), draw.flat(trainer.model))


def test_a_step_never_waits_for_the_device(new_trainer, make_model, of_train):
    """On a GPU, reading a number makes the CPU wait; a step and its batch read none."""
    images = torch.zeros(8, 3, 8, 8, dtype=torch.uint8)
    batches, reads = of_train("Batches")(images, torch.zeros(8).long(), 4), []
    trainer = new_trainer(make_model(seed=1), batches)

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            if op.name() in ("aten::_local_scalar_dense", "aten::nonzero"):
                reads.append(op.name())
            return op(*args, **(kwargs or {}))

    trainer.train_step(torch.zeros(4, 3, 8, 8), [CAPTIONS[0]] * 4)  # the first looks at the model
    with Watch():
        for images, labels in trainer.dataloader:
            loss = trainer.train_step(images, [CAPTIONS[0]] * len(labels))
        assert reads == [] and trainer.step == 3
        loss.item()
    assert reads == ["aten::_local_scalar_dense"], "the watch works"


def test_the_loss_falls_and_any_iterable_serves(new_trainer):
    labels = torch.arange(16) % 3
    pixels = (labels - 1.0)[:, None, None, None].expand(16, 3, 8, 8)
    dataset = torch.utils.data.TensorDataset(pixels, labels)
    torch.manual_seed(0)
    model = flowclip.TextConditionalDiT(8, 2, embed_dim=32, depth=1, num_heads=2, context_dim=12)
    batches = torch.utils.data.DataLoader(dataset, batch_size=16)
    trainer = new_trainer(model, batches, lr=3e-3)
    losses = trainer.train(100)
    assert losses is trainer.losses and len(losses) == 100
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5]), losses
    with pytest.raises(ValueError, match="no batch"):
        new_trainer(model, iter([])).train(1)
