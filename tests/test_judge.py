"""The judge judges the pictures, so its own measures must be right."""

import pytest
import torch
from hypothesis import given

from tests import judge
from tests import strategies as draw


@given(draw.seeds)
def test_frechet_distance_of_gaussians(seed):
    """Between N(m, diag(s^2)) and N(n, diag(r^2)) it is |m - n|^2 + |s - r|^2; a rotation of both changes nothing."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(500, 3, generator=g, dtype=torch.float64)
    x = (x - x.mean(dim=0)) @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T  # mean 0 and covariance 1, exactly
    (m, n), (s, r) = torch.randn(2, 3, generator=g).double(), torch.rand(2, 3, generator=g).double() + 0.1
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=torch.float64))
    expected = ((m - n).square().sum() + (s - r).square().sum()).item()
    for R in (torch.eye(3, dtype=torch.float64), rotation):
        assert judge.frechet_distance((m + s * x) @ R, (n + r * x) @ R) == pytest.approx(expected, abs=1e-6)
    assert judge.frechet_distance(m + s * x, m + s * x) == pytest.approx(0, abs=1e-6)


def test_the_judge_learns_and_its_parts_fit():
    """Two classes, bright and dark, are told apart after some steps; the random state stays as it was."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    images = (torch.randint(0, 100, (64, 1, 8, 8), generator=g) + 150 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    before = torch.get_rng_state()
    cnn = judge.fit_judge(images, labels, 2, "cpu", mirror=False)
    assert torch.equal(before, torch.get_rng_state())
    seen, features = cnn.look(images)
    assert torch.equal(seen, labels) and features.shape == (64, 128) and features.dtype == torch.float64


def test_the_digits_are_halved():
    (images, labels), (held, _), captions = judge.load_real("digits", None)
    assert len(images) == 898 and len(held) == 899 and len(captions) == 10 and labels.unique().tolist() == list(range(10))
