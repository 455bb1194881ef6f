"""The judge judges the pictures, so its own measures must be right."""

import ablate
import judge
import pytest
import torch
from hypothesis import given

import flowclip
from tests.spec import strategies as draw


@given(draw.seeds)
def test_frechet_distance_of_gaussians(seed):
    """Between N(m, diag(s^2)) and N(n, diag(r^2)) it is |m - n|^2 + |s - r|^2.

    A rotation of both changes nothing.
    """
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(500, 3, generator=g, dtype=torch.float64)
    x -= x.mean(dim=0)
    x = x @ torch.linalg.cholesky(x.T.cov()).inverse().T  # mean 0 and covariance 1, exactly
    m, n = torch.randn(2, 3, generator=g).double()
    s, r = torch.rand(2, 3, generator=g).double() + 0.1
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=torch.float64))
    expected = ((m - n).square().sum() + (s - r).square().sum()).item()
    for R in (torch.eye(3, dtype=torch.float64), rotation):
        distance = judge.frechet_distance((m + s * x) @ R, (n + r * x) @ R)
        assert distance == pytest.approx(expected, abs=1e-6)
    assert judge.frechet_distance(m + s * x, m + s * x) == pytest.approx(0, abs=1e-6)


@pytest.mark.heavy
def test_the_judge_learns_and_its_parts_fit():
    """Bright and dark are told apart after some steps; the random state stays as it was."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    images = torch.randint(0, 100, (64, 1, 8, 8), generator=g) + 150 * labels.view(-1, 1, 1, 1)
    images, before = images.to(torch.uint8), torch.get_rng_state()
    cnn = judge.fit_judge(images, labels, 2, "cpu", mirror=False)
    assert torch.equal(before, torch.get_rng_state())
    seen, features = cnn.look(images)
    assert torch.equal(seen, labels)
    assert features.shape == (64, 128) and features.dtype == torch.float64


@pytest.mark.heavy
def test_the_judge_sees_each_image_shifted_by_itself(monkeypatch):
    """A batch of copies of one image, shifted by a pixel at most, shows several of the 9 places.

    All batches together show all of them; of mirrored images, all 18.
    """
    seen, plain = [], judge.Judge.forward
    monkeypatch.setattr(judge.Judge, "forward", lambda self, x: seen.append(x) or plain(self, x))
    images = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).repeat(16, 1, 1, 1)
    for mirror, places in ((False, 9), (True, 18)):
        seen.clear()
        judge.fit_judge(images, torch.arange(16) % 2, 2, "cpu", mirror)
        assert len(seen) == 100 and len(torch.cat(seen).unique(dim=0)) == places
        assert all(len(x.unique(dim=0)) > 4 for x in seen)


def test_the_digits_are_halved():
    (images, labels), (held, _), captions = judge.load_real("digits")
    assert len(images) == 898 and len(held) == 899 and len(captions) == 10
    assert labels.unique().tolist() == list(range(10))


def test_images_are_mirrored_by_a_coin_each():
    images, labels = torch.randint(0, 256, (40, 1, 4, 4), dtype=torch.uint8), torch.arange(40)
    batches = ablate.Mirrored(images, labels, 20)
    first, again = list(batches), list(batches)
    for (x, y), (same, _) in zip(first, again):
        plain, mirrored = flowclip.normalize_images(images[y]), 0
        for image, before in zip(x, plain):
            assert torch.equal(image, before) or torch.equal(image, before.flip(-1))
            mirrored += not torch.equal(image, before)
        assert torch.equal(x, same) and 3 < mirrored < 17


@pytest.fixture
def train_100_steps(make_model, monkeypatch):
    """-> a function that trains by a kind of trainer -> (the trainer, the times t of its steps)."""
    plain = flowclip.flow_matching_loss
    data = [(2 * torch.rand(100, 3, 4, 4) - 1, torch.arange(100) % 2)] * 10

    def run(kind):
        times = []

        def watch(*args, t, **given):
            times.append(t)
            return plain(*args, t=t, **given)

        monkeypatch.setattr(flowclip, "flow_matching_loss", watch)
        captions = ["a", "b"] * 50
        model, encoder = make_model(img_size=4, depth=1), draw.StandIn()
        trainer = kind(model, encoder, data, lambda labels: captions, device="cpu")
        trainer.train(10)
        assert flowclip.flow_matching_loss is watch, "nothing is patched for good"
        return trainer, torch.cat(times)

    return run


@pytest.mark.heavy
def test_logit_normal_times(train_100_steps):
    """The logits of the times are N(0, 1)."""
    _, t = train_100_steps(ablate.LogitNormal)
    logits = t.logit()
    assert logits.mean().abs() < 0.05 and (logits.std() - 1).abs() < 0.05


@pytest.mark.heavy
def test_other_averages(train_100_steps):
    """In 100 steps a decay of 0.9 binds, which makes it another average; 0.99 does not."""
    trainer, t = train_100_steps(ablate.Averages)
    assert t.mean().sub(0.5).abs() < 0.02
    own = trainer.ema_model.final_linear.weight
    low, high = (model.final_linear.weight for model in trainer.others.values())
    assert torch.equal(own, high) and not torch.equal(own, low)


def test_the_held_out_loss_is_that_of_flow_matching(make_model):
    """A model that says 0 has E[v^2]: 1 for the noise, and the mean square of the images."""
    images, labels = torch.full((300, 3, 8, 8), 255, dtype=torch.uint8), torch.arange(300) % 2
    silent = lambda xt, t, context, mask: torch.zeros_like(xt)  # noqa: E731
    loss = judge.held_out_loss(silent, draw.StandIn(), images, labels, ["a", "b"], "cpu")
    assert loss == pytest.approx(2, abs=0.03)
