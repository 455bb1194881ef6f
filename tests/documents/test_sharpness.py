"""docs/studies/sharpness.py: the curvature of the loss, as AdamW sees it."""

import pytest
import sharpness
import torch

import flowclip
import train
from tests.spec.compare import close

pytestmark = pytest.mark.heavy  # a study is no part of the specification


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_encoder):
    """A trainer of a small model after a few steps on digits, its weights before the last step,
    its valley in float64, and a batch in two parts."""
    path = tmp_path_factory.mktemp("sharpness") / "checkpoint.pt"
    data = images, labels, captions = train.load_data("digits")
    torch.manual_seed(0)
    model = flowclip.TextConditionalDiT(8, 4, 1, 16, 1, 2, context_dim=small_encoder.embed_dim)
    batches = train.Batches(images, labels, 64)
    trainer = train.TextConditionalTrainer(
        model, small_encoder, batches, lambda labels: [captions[label] for label in labels], 1e-2
    )
    trainer.train(1, max_steps=9)
    before = [weight.detach().clone() for weight in model.parameters()]
    trainer.train(1, max_steps=10)
    trainer.save_checkpoint(path)
    valley = sharpness.Valley(flowclip.read_checkpoint(path))
    valley.model.double().time_mlp.register_forward_pre_hook(lambda _, inputs: inputs[0].double())
    valley.roots = [root.double() for root in valley.roots]
    parts = sharpness.draw_batch(data, small_encoder, 80, seed=0)
    parts = [[x.double() if x.is_floating_point() else x for x in part] for part in parts]
    return trainer, before, valley, parts


def test_the_edge_is_where_steps_of_adamw_begin_to_grow(run):
    edge = run[2].edge
    for share in (0.98, 1.02):
        weight = torch.tensor([1e-99], dtype=torch.float64, requires_grad=True)
        weight.grad = torch.zeros_like(weight)
        optimizer = torch.optim.AdamW([weight], 1e-2, weight_decay=0)
        optimizer.step()
        state = optimizer.state[weight]
        state["step"].fill_(1e6)  # late in a run, where nothing is corrected for its beginning
        places = []
        for _ in range(300):
            state["exp_avg_sq"].fill_(1)  # these gradients are too small to change it
            weight.grad = share * edge * weight.detach()  # of a parabola
            optimizer.step()
            places.append(weight.abs().item())
        early, late = max(places[50:100]), max(places[-50:])
        assert (late > 2 * early, late < early / 2) == (share > 1, share < 1), (early, late)


def test_the_raw_weights_and_what_adamw_divides_by_are_taken(run):
    trainer, before, valley, _ = run
    named = trainer.model.named_parameters()
    for (name, now), weight, old, root in zip(named, valley.weights, before, valley.roots):
        close(name, weight.float(), now, atol=0)
        momentum = trainer.optimizer.state[now]["exp_avg"] / (1 - 0.9**10)
        moved = old * (1 - 1e-2 * 0.01) - now  # the rate 1e-2, a decay of 0.01
        close(f"P times the last step of {name}", moved * root.square(), 1e-2 * momentum, atol=1e-6)


def test_the_curvature_is_the_slope_of_the_gradient_in_the_lengths_of_p(run):
    _, _, valley, parts = run
    x0, x1, t, context, mask = (torch.cat(tensors) for tensors in zip(*parts))  # all at once

    def slope():
        loss = flowclip.flow_matching_loss(valley.model, x0, context, mask, x1=x1, t=t)
        return torch.autograd.grad(loss, valley.weights)

    def move(size):
        with torch.no_grad():
            for weight, part, root in zip(valley.weights, direction, valley.roots):
                weight += size * part / root

    torch.manual_seed(0)
    direction = [torch.randn_like(weight) for weight in valley.weights]
    found = valley.curve(direction, parts)
    size = 1e-5
    move(size)
    ahead = slope()
    move(-2 * size)
    behind = slope()
    move(size)
    expected = [(a - b) / (2 * size) / root for a, b, root in zip(ahead, behind, valley.roots)]
    for (name, _), part, other in zip(valley.model.named_parameters(), found, expected):
        atol = 2e-3 * part.abs().max().item() + 1e-6  # a bias of k moves nothing
        close(f"P^-1/2 H P^-1/2, {name}", part, other, atol=atol)


def test_the_sharpest_direction_is_the_one_that_curves_most_upwards():
    valley = sharpness.Valley.__new__(sharpness.Valley)  # one with curvatures that are known
    valley.weights, valley.edge = [torch.zeros(3), torch.zeros(2, 2)], 4.0
    curvatures = torch.tensor([1.0, 6.0, 2.0]), torch.tensor([[-50.0, 0.0], [3.0, -1.0]])
    valley.curve = lambda direction, batch: [a * b for a, b in zip(curvatures, direction)]
    assert valley.sharpness(batch=None) == pytest.approx(6 / 4, rel=0.05)
