"""facebookresearch/flow_matching by our names: the straight path and the solver.

ADAPT=../flow_matching pytest --impl=tests/adapters/flow_matching.py      (needs torchdiffeq)

There the noise is x_0 at t = 0 and the image x_1 at t = 1; here both are turned round.
"""

import sys

import torch

from tests.adapters.given import checkout

sys.modules.pop("flow_matching", None)
checkout()
from flow_matching.path import CondOTProbPath  # noqa: E402
from flow_matching.solver import ODESolver  # noqa: E402

DEPARTS = {
    "SAMPLE-6": "the state stays in the type in which it came",
}


def interpolate(x0, x1, t):
    sample = CondOTProbPath().sample(x_0=x1, x_1=x0, t=1 - t)
    return sample.x_t, -sample.dx_t


def integrate(velocity, x1, num_steps, solver="euler", callback=None):
    times = torch.linspace(1, 0, num_steps + 1, dtype=torch.promote_types(x1.dtype, torch.float32))
    model = lambda x, t: velocity(x, t.expand(len(x)))  # noqa: E731
    states = ODESolver(model).sample(
        x1, step_size=None, method={"heun": "heun2"}.get(solver, solver), time_grid=times,
        return_intermediates=True,
    )  # fmt: skip
    for n, x in enumerate(states[1:], 1):
        if callback:
            callback(n, times[n].item(), x)
    return states[-1]
