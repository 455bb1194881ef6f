"""Profiles of hypothesis, the one untrained encoder that all tests share, and small models that are not zero anywhere."""

import os
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import flowclip  # noqa: E402

quiet = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}
settings.register_profile("ci", max_examples=20, derandomize=True, **quiet)
settings.register_profile("dev", max_examples=20, **quiet)
settings.register_profile("thorough", max_examples=300, **quiet)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_configure(config):
    config.addinivalue_line("markers", "spec(*statements): the numbered statements of docs/ that a test guards")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def encoder():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return flowclip.CLIPTextEncoder(pretrained="untrained")


@pytest.fixture(scope="session")
def make_model():
    """A small model whose every parameter is random, the zero-initialised ones too: nothing cancels by accident."""

    def make(cls=flowclip.TextConditionalDiT, seed=0, **changes):
        sizes = {"img_size": 8, "patch_size": 2, "in_channels": 3, "embed_dim": 16, "depth": 2, "num_heads": 2}
        if cls is flowclip.TextConditionalDiT:
            sizes["context_dim"] = 12
        model = cls(**(sizes | changes))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        return model.eval()

    return make
