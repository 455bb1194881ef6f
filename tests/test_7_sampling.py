"""Chapter 7: the solvers on fields with known answers, the sampler, and checkpoints."""

import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import flowclip
from tests import oracles
from tests import strategies as draw

solvers = pytest.mark.parametrize("solver", ["euler", "heun"])


@pytest.mark.spec("SAMPLE-1", "SAMPLE-3")
@given(draw.steps)
def test_the_times_that_are_asked(N):
    for solver in ("euler", "heun"):
        asked, visited, states = [], [], []
        x1 = torch.randn(2, 1, 1, 1)

        def velocity(x, t, asked=asked):
            assert t.shape == (2,) and t.dtype == torch.float32 and t[0] == t[1]
            asked.append(t[0].item())
            return torch.ones_like(x)

        def callback(n, t, x, visited=visited, states=states):
            visited.append((n, t))
            states.append(x)

        flowclip.integrate(velocity, x1, N, solver, callback)
        for (_, t), x in zip(visited, states):
            torch.testing.assert_close(x, x1 - (1 - t), atol=1e-5, rtol=1e-5)
        grid = [1 - n / N for n in range(N + 1)]
        expected = (
            grid[:-1] if solver == "euler" else [t for pair in zip(grid, grid[1:]) for t in pair]
        )
        assert asked == pytest.approx(expected, abs=1e-6) and len(asked) == (
            N if solver == "euler" else 2 * N
        )
        assert [n for n, _ in visited] == list(range(1, N + 1)) and [
            t for _, t in visited
        ] == pytest.approx(grid[1:])


def field(x, t):
    return torch.sin(3 * x) + t.view(-1, 1) * x


@pytest.mark.spec("SAMPLE-2", "SAMPLE-3")
@given(st.lists(st.floats(-2, 2), min_size=1, max_size=3), draw.steps)
def test_steps_equal_the_loop(values, N):
    x1 = torch.tensor(values).double()[:, None]
    for solver in ("euler", "heun"):
        for start, end in zip(values, flowclip.integrate(field, x1, N, solver).flatten().tolist()):
            expected = oracles.solve(lambda x, t: math.sin(3 * x) + t * x, start, N, solver)
            assert end == pytest.approx(expected, abs=1e-5), (solver, start)


@pytest.mark.spec("SAMPLE-9")
@given(draw.steps, draw.seeds)
def test_straight_paths_are_followed_exactly(N, seed):
    g = torch.Generator().manual_seed(seed)
    x1, a = torch.randn(3, 2, generator=g), torch.randn(3, 2, generator=g)
    for solver in ("euler", "heun"):
        torch.testing.assert_close(
            flowclip.integrate(lambda x, t: a, x1, N, solver), x1 - a, atol=1e-5, rtol=1e-5
        )
    point = lambda x, t: (x - a) / t.view(-1, 1)  # noqa: E731
    torch.testing.assert_close(flowclip.integrate(point, x1, N), a, atol=1e-5, rtol=1e-4)


@pytest.mark.spec("SAMPLE-8")
@pytest.mark.parametrize("solver, order", [("euler", 1), ("heun", 2)])
def test_order_of_convergence(solver, order):
    """dx/dt = x + t from x(1) = 1 arrives at 3/e - 1: a field that changes in place and in time."""
    x1 = torch.tensor([[1.0]]).double()
    errors = [
        abs(flowclip.integrate(lambda x, t: x + t, x1, N, solver).item() - (3 / math.e - 1))
        for N in (20, 40, 80)
    ]
    for coarse, fine in zip(errors, errors[1:]):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1), errors


@pytest.mark.spec("SAMPLE-6")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_state_keeps_float32(dtype):
    state = torch.float64 if dtype == torch.float64 else torch.float32
    x1, seen = torch.randn(2, 3).to(dtype), []

    def velocity(x, t):
        seen.append(x.dtype)
        return torch.full_like(x, 1 / 3).bfloat16()

    for solver in ("euler", "heun"):
        out = flowclip.integrate(velocity, x1, 50, solver)
        assert out.dtype == state and set(seen) == {state}
        torch.testing.assert_close(
            out, x1.to(state) - torch.tensor(1 / 3).bfloat16().to(state), atol=1e-5, rtol=1e-5
        )


@pytest.mark.spec("SAMPLE-8")
@solvers
def test_gaussian_data_come_out_with_their_mean_and_variance(solver):
    m, s, count = 0.7, 0.5, 4000

    def velocity(x, t):
        intercept, slope = oracles.gaussian_velocity(m, s, t[:, None])
        return intercept + slope * x

    x = flowclip.integrate(
        velocity, torch.randn(count, 1), 200 if solver == "euler" else 50, solver
    )
    assert abs(x.mean() - m) < 4 * s / math.sqrt(count)
    assert abs(x.var() - s**2) < 4 * s**2 * math.sqrt(2 / count) + (
        0.005 if solver == "euler" else 0
    )


def sample(model, prompts, **options):
    defaults = {"image_shape": (3, 8, 8), "num_steps": 4, "progress": False}
    return flowclip.sample_text_conditional(model, draw.StandIn(), prompts, **(defaults | options))


@pytest.mark.spec("SAMPLE-4")
@given(draw.captions, draw.seeds, st.randoms(use_true_random=False))
def test_same_noise_same_image(make_model, prompts, seed, random):
    model, B = make_model(), len(prompts)
    images = [
        sample(model, prompts, generator=torch.Generator().manual_seed(n))
        for n in (seed, seed, seed + 1)
    ]
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])
    noise, state = (
        torch.randn(B, 3, 8, 8, generator=torch.Generator().manual_seed(seed)),
        torch.get_rng_state(),
    )
    torch.testing.assert_close(sample(model, prompts, noise=noise), images[0])
    assert torch.equal(torch.get_rng_state(), state), (
        "the noise was given, and yet something was drawn"
    )
    order = random.sample(range(B), B)
    permuted = sample(model, [prompts[i] for i in order], noise=noise[order])
    torch.testing.assert_close(permuted, images[0][order], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(
        sample(model, prompts[0], noise=noise[:1])[0], images[0][0], atol=1e-4, rtol=1e-3
    )


@pytest.mark.spec("SAMPLE-5")
@solvers
@given(draw.captions, draw.seeds, st.integers(1, 4), st.data())
def test_the_sampler_is_guided_integration(make_model, solver, prompts, seed, N, data):
    model, B = make_model(), len(prompts)
    one_each = st.lists(draw.scales, min_size=B, max_size=B).map(torch.tensor)
    w = data.draw(st.sampled_from([0, 1]) | draw.scales | one_each, "w")
    noise = torch.randn(B, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    Z, mask = draw.StandIn()(prompts)
    null = [tensor.expand(B, *tensor.shape[1:]) for tensor in draw.StandIn()("")]

    def velocity(x, t):
        cond, uncond = model(x, t, Z, mask), model(x, t, *null)
        return uncond + (w.view(-1, 1, 1, 1) if torch.is_tensor(w) else w) * (cond - uncond)

    with torch.no_grad():
        expected = flowclip.integrate(velocity, noise, N, solver)
    images = sample(model, prompts, noise=noise, cfg_scale=w, solver=solver, num_steps=N)
    torch.testing.assert_close(images, expected, atol=1e-3, rtol=1e-3)
    same = {"noise": noise.double(), "cfg_scale": w, "solver": solver, "num_steps": N}
    again = sample(model, tuple(prompts), device="cpu", **same)
    assert torch.equal(again, images) and images.dtype == torch.float32


def test_clip_is_asked_once_a_drawing_and_not_once_a_step(make_model):
    encoder, noise = draw.StandIn(), torch.randn(1, 3, 8, 8).expand(3, -1, -1, -1)
    options = {"noise": noise, "num_steps": 4, "progress": False}
    flowclip.sample_text_conditional(make_model(), encoder, ["a", "b", ""], (3, 8, 8), **options)
    assert sorted(encoder.asked) == ["", "", "a", "b"]


@pytest.mark.spec("SAMPLE-5")
def test_the_empty_prompt_is_the_null_text(make_model):
    noise = torch.randn(1, 3, 8, 8)
    unconditional = sample(make_model(), "dog", noise=noise, cfg_scale=0)
    torch.testing.assert_close(sample(make_model(), "", noise=noise), unconditional)


@pytest.mark.spec("SAMPLE-5")
def test_the_documented_defaults():
    parameters = inspect.signature(flowclip.sample_text_conditional).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    assert (defaults["image_shape"], defaults["num_steps"]) == ((3, 32, 32), 50)
    assert (defaults["cfg_scale"], defaults["solver"]) == (7.5, "euler")


@solvers
def test_the_progress_bar(make_model, monkeypatch, solver):
    bars = []

    class Bar:
        def __init__(self, total, desc, leave, disable):
            assert desc == "sampling" and leave is False
            self.total, self.disable, self.count, self.open = total, disable, 0, None
            bars.append(self)

        def __enter__(self):
            self.open = True
            return self

        def update(self):
            assert self.open
            self.count += 1

        def __exit__(self, *_):
            self.open = False

    monkeypatch.setattr(flowclip, "tqdm", Bar)
    sample(make_model(), "dog", solver=solver)
    sample(make_model(), "dog", solver=solver, progress=True)
    ticks = [(bar.total, bar.count, bar.open) for bar in bars]
    assert ticks == [(4, 4, False)] * 2, "a tick a step"
    assert [bar.disable for bar in bars] == [True, None], "None: shown where there is a terminal"


@pytest.mark.parametrize("accelerator", ["cuda", "mps", None])
def test_the_best_device(monkeypatch, accelerator):
    found = accelerator and torch.device(accelerator)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found)
    assert flowclip.get_device() == torch.device(accelerator or "cpu")


@pytest.mark.parametrize("precision, native, expected", [
    ("auto", True, True), ("auto", False, False), ("fp32", True, False), ("bf16", False, True),
])  # fmt: skip
def test_auto_precision_is_bf16_where_the_processor_has_amx(
    monkeypatch, precision, native, expected
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": native}, raising=False)
    with flowclip.autocast("cpu", *([] if precision == "auto" else [precision])):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if expected else torch.float32)


def test_auto_precision_where_nothing_is_known(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    with flowclip.autocast("cpu"):
        assert not torch.is_autocast_enabled("cpu")
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as in older releases
    with flowclip.autocast("cpu"):
        assert not torch.is_autocast_enabled("cpu")


def test_auto_precision_on_a_gpu(monkeypatch):
    for native in (True, False):
        supported = {False: native, True: None}  # emulated bfloat16 is slow
        ask = lambda including_emulation, answer=supported: answer[including_emulation]  # noqa: E731
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", ask)
        seen = []
        note = lambda *args, seen=seen, **given: seen.append((args, given))  # noqa: E731
        monkeypatch.setattr(torch, "autocast", note)
        flowclip.autocast("cuda:0")
        assert seen == [(("cuda", torch.bfloat16), {"enabled": native})]


@pytest.mark.spec("SAMPLE-7")
def test_modes_are_left_as_found(make_model):
    model = make_model().train()
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    seen = []
    watch = lambda module, *_: seen.append(module.training)  # noqa: E731
    model.blocks[0].register_forward_hook(watch)
    model.blocks[1].register_forward_hook(watch)
    images = sample(model, "dog")
    assert [module.training for module in model.modules()] == modes and not images.requires_grad
    assert seen and seen == [False, True] * (len(seen) // 2), "not even while it samples"
    assert torch.is_grad_enabled()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_checkpoint_round_trip(make_model, tmp_path):
    model, path = make_model(), tmp_path / "checkpoint.pt"
    meta = {"config": model.config, "captions": ["dog"], "losses": [0.5]}
    flowclip.save_checkpoint(path, model, meta)
    loaded, read = flowclip.load_checkpoint(path)
    assert read == meta and torch.equal(draw.flat(loaded), draw.flat(model)) and not loaded.training
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"], "no part is left behind"


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_checkpoints_that_are_none(make_model, tmp_path):
    model, path, fired = make_model(), tmp_path / "checkpoint.pt", tmp_path / "fired"
    torch.save({"model": Bomb(fired), "meta": {}, "training": None}, tmp_path / "bomb.pt")
    flowclip.save_checkpoint(path, model, {"config": model.config})
    content = path.read_bytes()
    for name, data in {
        "half.pt": content[: len(content) // 2],
        "empty.pt": b"",
        "text.pt": b"hello",
    }.items():
        (tmp_path / name).write_bytes(data)
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    (tmp_path / "flipped.pt").write_bytes(content.replace(b"img_size", b"img_sizf"))
    for name in ("bomb.pt", "half.pt", "empty.pt", "text.pt", "foreign.pt"):
        with pytest.raises(ValueError, match=f"{name} is not a whole flowclip checkpoint"):
            flowclip.load_checkpoint(tmp_path / name)
    reasons = {"missing.pt": "No such file", "flipped.pt": "checksums"}
    for name, reason in reasons.items():
        with pytest.raises(ValueError, match=f"{name} is not a whole .*{reason}"):
            flowclip.load_checkpoint(tmp_path / name)
    assert not fired.exists(), "a checkpoint ran code"
