"""docs/studies/fid.py on a stand-in for the Inception network, which is not downloaded here."""

import judge
import pytest
import torch
from torch import nn

import train
from tests.conftest import TINY, one_line

pytestmark = pytest.mark.heavy  # a study is no part of the specification

fid = pytest.importorskip("fid", reason="needs docs/requirements-test.txt")


class StandIn(nn.Module):
    """Five numbers of an image in place of Inception's 2,048."""

    num_features = 5

    def forward(self, images):
        red = images[:, 0].double().flatten(1)
        return red[:, :: red.shape[1] // 4][:, :4] @ torch.eye(4, 5, dtype=torch.float64) + 1


def test_it_is_the_frechet_distance_of_the_features():
    real, drawn = torch.randint(0, 256, (2, 300, 1, 4, 4), dtype=torch.uint8)
    metric = fid.make_metric(StandIn())
    fid.see(metric, real, real=True)
    for _ in range(2):  # the real images stay, the drawn ones are others
        metric.reset()
        fid.see(metric, drawn, real=False)
    expected = judge.frechet_distance(*(StandIn()(x) for x in (real, drawn)))
    assert metric.compute().item() == pytest.approx(expected, rel=1e-3)


def test_a_run_is_measured(command, monkeypatch, tmp_path):
    run = ["--data", "digits", "--clip-weights", "untrained", "--patch-size", "2", *TINY]
    assert command(train, *run, "--max-steps", "1", "--out", "o")[0] == 0
    make = fid.make_metric
    monkeypatch.setattr(fid, "make_metric", lambda: make(StandIn()))
    options = ["o/checkpoint.pt", "--n", 20, "--steps", 1, "--cfg", 1, 3]
    status, out, err = command(fid, *options)
    assert status == 0 and "w = 3, 1 Euler steps: FID " in out, err
    assert len((tmp_path / "o/fid.csv").read_text().splitlines()) == 3


def test_without_the_network_it_is_one_line(command, monkeypatch):
    def gone(*_, **__):
        raise OSError("no network in this test")

    monkeypatch.setattr(fid, "FrechetInceptionDistance", gone)
    one_line(command(fid, "o/checkpoint.pt"), "Inception", "no network in this test")
