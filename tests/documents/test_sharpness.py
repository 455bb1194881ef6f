"""docs/studies/sharpness.py: the curvature of the loss, as AdamW sees it."""

import pytest
import sharpness
import torch

import flowclip
import train
from tests.spec.compare import close


@pytest.fixture(scope="module")
def valley(tmp_path_factory, small_encoder):
    """Of a small model after a few steps on digits, and a batch, in float64."""
    path = tmp_path_factory.mktemp("sharpness") / "checkpoint.pt"
    data = images, labels, captions = train.load_data("digits")
    torch.manual_seed(0)
    model = flowclip.TextConditionalDiT(8, 4, 1, 16, 1, 2, context_dim=small_encoder.embed_dim)
    batches = train.Batches(images, labels, 64)
    trainer = train.TextConditionalTrainer(
        model, small_encoder, batches, lambda labels: [captions[label] for label in labels], 1e-2
    )
    trainer.train(1, max_steps=10)
    trainer.save_checkpoint(path)
    valley = sharpness.Valley(flowclip.read_checkpoint(path))
    valley.model.double().time_mlp.register_forward_pre_hook(lambda _, inputs: inputs[0].double())
    valley.roots = [root.double() for root in valley.roots]
    [(x0, x1, t, context, mask)] = sharpness.draw_batch(data, small_encoder, 64, seed=0)
    return valley, [(x0.double(), x1.double(), t.double(), context.double(), mask)]


def test_the_edge_is_38_over_the_rate(valley):
    assert valley[0].edge == pytest.approx(38 / 1e-2)


def test_the_curvature_is_the_slope_of_the_gradient_where_steps_are_divided_by_root_v(valley):
    valley, batch = valley
    [(x0, x1, t, context, mask)] = batch

    def slope():
        loss = flowclip.flow_matching_loss(valley.model, x0, context, mask, x1=x1, t=t)
        return torch.autograd.grad(loss, valley.weights)

    def move(size):
        with torch.no_grad():
            for weight, part, root in zip(valley.weights, direction, valley.roots):
                weight += size * part / root

    torch.manual_seed(0)
    direction = [torch.randn_like(weight) for weight in valley.weights]
    found = valley.curve(direction, batch)
    size = 1e-5
    move(size)
    ahead = slope()
    move(-2 * size)
    behind = slope()
    move(size)
    expected = [(a - b) / (2 * size) / root for a, b, root in zip(ahead, behind, valley.roots)]
    found, expected = (torch.cat([x.flatten() for x in parts]) for parts in (found, expected))
    close("P^-1/2 H P^-1/2 times a direction", found, expected, atol=1e-3 * found.abs().max())


def test_the_sharpest_direction_is_the_one_that_curves_most_upwards():
    valley = sharpness.Valley.__new__(sharpness.Valley)  # one with curvatures that are known
    valley.weights, valley.edge = [torch.zeros(3), torch.zeros(2, 2)], 4.0
    curvatures = torch.tensor([1.0, 6.0, 2.0]), torch.tensor([[-50.0, 0.0], [3.0, -1.0]])
    valley.curve = lambda direction, batch: [a * b for a, b in zip(curvatures, direction)]
    assert valley.sharpness(batch=None) == pytest.approx(6 / 4, rel=0.05)
