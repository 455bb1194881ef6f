"""docs/studies/exact.py: the model that has nothing left to learn."""

import exact
import pytest
import torch

import flowclip
import train
from tests.spec import oracles
from tests.spec.compare import close


@pytest.fixture(scope="module")
def model():
    """Of a hundred digits."""
    images, labels, _ = train.load_data("digits")
    return exact.ExactModel(flowclip.normalize_images(images[:100]).double(), labels[:100])


def asked(model, count, seed=0):
    """-> x_t and t of `count` lines to images of the model, and the labels of these."""
    rand = torch.Generator().manual_seed(seed)
    x1, t = torch.randn(count, 1, 8, 8, generator=rand).double(), torch.rand(count, generator=rand)
    xt, _ = flowclip.interpolate(model.images[:count], x1, 0.1 + 0.8 * t.double())
    return xt, 0.1 + 0.8 * t.double(), model.labels[:count]


def test_the_velocity_is_that_of_the_statement(model):
    xt, t, labels = asked(model, 5)
    for context, known in ((model.texts(labels), True), (model.null.expand(5, -1, -1), False)):
        v = model(xt, t, context).flatten(1)
        for b in range(5):
            images = model.images[model.labels == labels[b]] if known else model.images
            expected = oracles.mean_velocity(
                xt[b].flatten().tolist(), t[b].item(), images.flatten(1).tolist()
            )
            close(f"v of sample {b}", v[b], expected, atol=1e-9)


def test_its_paths_end_at_training_images_with_the_prompt_at_any_guidance(model):
    labels = torch.arange(50) % 10
    for w in (0, 1, 3, 7.5):
        far, which = exact.nearest(model.draw(labels, w), model.images)
        assert far.max() < 1e-6, f"w = {w}: an image {far.max():.2g} away from all"
        assert w == 0 or torch.equal(model.labels[which], labels), f"w = {w}: another prompt"


def test_no_other_model_has_a_lower_loss(model, make_model):
    x0, labels = model.images.repeat(10, 1, 1, 1), model.labels.repeat(10)
    texts, null = model.texts(labels), model.null.expand(len(x0), -1, -1)
    least, untold = exact.loss_of(model, x0, texts), exact.loss_of(model, x0, null)
    assert least < untold, f"{least:.4f} with captions, {untold:.4f} without"
    dit = make_model(in_channels=1, context_dim=model.captions)
    with torch.no_grad():
        others = {
            "the mean image": exact.loss_of(
                lambda xt, t, *_: (xt - model.images.mean(dim=0)) / t.view(-1, 1, 1, 1), x0, texts
            ),
            "half of the images": exact.loss_of(
                exact.ExactModel(model.images[::2], model.labels[::2]), x0, texts
            ),
            "a transformer": exact.loss_of(
                lambda xt, t, context, _: dit(xt.float(), t.float(), context), x0, texts
            ),
            "a little more": exact.loss_of(lambda *args: 1.1 * model(*args), x0, texts),
        }
    for name, other in others.items():
        assert least < other, f"{least:.4f}, and {name} has {other:.4f}"


def test_guidance_climbs_to_where_the_text_is_likely(model):
    """[CFG-5], the gradient by autograd: P_t(text | x_t) is the sum of its images' shares."""
    xt, t, labels = asked(model, 8)
    xt.requires_grad_()
    null = model.null.expand(8, -1, -1)
    mine = model.labels == labels[:, None]
    sure = (model.shares(xt, t, null) * mine).sum(dim=-1).log()
    (gradient,) = torch.autograd.grad(sure.sum(), xt)
    difference = model(xt, t, model.texts(labels)) - model(xt, t, null)
    expected = -(t / (1 - t)).view(-1, 1, 1, 1) * gradient
    close("v_cond - v_uncond", difference, expected, atol=1e-6, rtol=1e-4)
