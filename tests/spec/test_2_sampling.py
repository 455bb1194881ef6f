"""Chapter 2: the solvers on fields with known answers, the sampler, and checkpoints."""

import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import flowclip
from tests.spec import oracles
from tests.spec import strategies as draw
from tests.spec.compare import close, equal, follows_normal, unrelated

solvers = pytest.mark.parametrize("solver", ["euler", "heun"])


def field(x, t):
    return torch.sin(3 * x) + t.view(-1, 1) * x


def walk(N, solver, values=(0.5, -1.0)):
    """-> the end; the (x, t) that the velocity was asked at; the (n, t, x) of the callback.

    Copies of x: a solver may change its own state in place.
    """
    asked, visited = [], []

    def velocity(x, t):
        asked.append((x.clone(), t[0].item()))
        return field(x, t)

    def callback(n, t, x):
        visited.append((n, t, x.clone()))

    x1 = torch.tensor(values).double()[:, None]
    end = flowclip.integrate(velocity, x1, N, solver, callback)
    return end, asked, visited


@pytest.mark.spec("SAMPLE-1")
@solvers
@given(draw.steps)
def test_the_times_that_are_asked_and_visited(solver, N):
    _, asked, visited = walk(N, solver)
    if solver == "euler":
        close("the times that Euler asks at", [t for _, t in asked], [1 - n / N for n in range(N)])
    steps, times = [n for n, _, _ in visited], [t for _, t, _ in visited]
    assert steps == list(range(1, N + 1)), f"the steps {steps}, expected 1 to {N}"
    close(f"the times that {solver} reaches", times, [1 - n / N for n in steps])


@pytest.mark.spec("SAMPLE-2")
@given(st.lists(st.floats(-2, 2), min_size=1, max_size=3), draw.steps)
def test_euler_s_step(values, N):
    """Each step from the place and time that were asked, to the time that was reached."""
    end, asked, visited = walk(N, "euler", values)
    for n, ((x, t), (_, t_next, x_next)) in enumerate(zip(asked, visited)):
        expected = x + (t_next - t) * field(x, torch.full((len(x),), t).double())
        close(f"x_{n + 1}", x_next, expected, atol=1e-6)
    for (n, _, x_next), (x, _) in zip(visited, [*asked[1:], (end, 0)]):
        close(f"x_{n}, from which it goes on,", x, x_next, atol=1e-6)


@pytest.mark.spec("SAMPLE-2")
def test_euler_unless_told():
    x1 = torch.tensor([[0.5], [-1.0]])
    expected = flowclip.integrate(field, x1, 4, "euler")
    close("the end of a walk", flowclip.integrate(field, x1, 4), expected)


@pytest.mark.spec("SAMPLE-3")
@given(st.lists(st.floats(-2, 2), min_size=1, max_size=3), draw.steps)
def test_heun_s_step(values, N):
    end, asked, visited = walk(N, "heun", values)
    steps = len(visited)
    assert len(asked) == 2 * steps, f"{len(asked)} evaluations in {steps} steps"
    for n, (_, t_next, x_next) in enumerate(visited):
        (x, t), (y, t_second) = asked[2 * n], asked[2 * n + 1]
        times = [torch.full((len(x),), time).double() for time in (t, t_next)]
        v = field(x, times[0])
        y_expected = x + (t_next - t) * v
        close("y, where it asks again,", y, y_expected, atol=1e-6)
        close("the time at which it asks again", t_second, t_next)
        expected = x + (t_next - t) * (v + field(y_expected, times[1])) / 2
        close(f"x_{n + 1}", x_next, expected, atol=1e-6)
    for (n, _, x_next), (x, _) in zip(visited, [*asked[2::2], (end, 0)]):
        close(f"x_{n}, from which it goes on,", x, x_next, atol=1e-6)


@pytest.mark.spec("SAMPLE-9")
@solvers
@given(draw.steps, draw.seeds)
def test_straight_paths_are_followed_exactly(solver, N, seed):
    g = torch.Generator().manual_seed(seed)
    x1, a = torch.randn(3, 2, generator=g), torch.randn(3, 2, generator=g)
    end = flowclip.integrate(lambda x, t: a.clone(), x1, N, solver)
    close(f"the end of {solver}'s walk in a constant field", end, x1 - a)
    point = lambda x, t: (x - a) / t.view(-1, 1)  # noqa: E731
    close("the end of the walk to a point", flowclip.integrate(point, x1, N), a, rtol=1e-4)


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
        close(f"{solver}'s order, log2({coarse:.3g} / {fine:.3g}),",
              math.log2(coarse / fine), order, atol=0.1)  # fmt: skip


@pytest.mark.spec("SAMPLE-6")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@solvers
def test_the_state_keeps_float32(dtype, solver):
    state = torch.float64 if dtype == torch.float64 else torch.float32
    x1, seen, third = torch.randn(2, 3).to(dtype), [], torch.tensor(1 / 3).bfloat16()
    times = [1]

    def velocity(x, t):
        seen.append(x.dtype)
        return third.expand_as(x).clone()

    out = flowclip.integrate(velocity, x1, 50, solver, lambda n, t, x: times.append(t))
    for found in (*seen, out.dtype):
        assert found == state, f"the state, which came in {dtype}, is in {found}, expected {state}"
    close("the end", out, x1.to(state) + (times[-1] - 1) * third.to(state))


class Watched(torch.nn.Module):
    """Says `answer` to all; it remembers the modes of its parts, and whether a graph is built."""

    def __init__(self, answer=0.0):
        super().__init__()
        self.answer = torch.nn.Parameter(torch.tensor(answer))
        self.parts, self.seen = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()]), []

    def modes(self):
        return [self.training, *(part.training for part in self.parts)]

    def forward(self, xt, t, context, mask):
        v = self.answer.expand_as(xt).clone()
        self.seen.append((self.modes(), (2 * v).requires_grad))
        return v


def sample(model, prompts, **options):
    defaults = {"image_shape": (3, 8, 8), "num_steps": 4, "progress": False}
    return flowclip.sample_text_conditional(model, draw.StandIn(), prompts, **(defaults | options))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.spec("SAMPLE-4")
def test_the_walk_starts_at_normal_noise():
    """A model that says 0 leaves the noise as it is."""
    noise = sample(Watched(), 400 * ["dog"], generator=seeded(0), image_shape=(3, 2, 2))
    follows_normal("a number of the noise", noise)
    unrelated("pixels of the noise", noise.flatten(1))
    unrelated("noises of two images", sample(
        Watched(), 20 * ["dog"], generator=seeded(1), image_shape=(3, 16, 16)
    ).flatten(1).T)  # fmt: skip


@pytest.mark.spec("SAMPLE-4")
@given(draw.captions, draw.seeds, st.randoms(use_true_random=False))
def test_same_noise_same_image(make_model, prompts, seed, random):
    model, B = make_model(depth=1), len(prompts)
    images = []
    for n in (seed, seed, seed + 1):
        torch.manual_seed(len(images))  # the global state plays no part
        state = torch.get_rng_state()
        images.append(sample(model, prompts, generator=seeded(n)))
        assert torch.equal(torch.get_rng_state(), state), "the global random state has changed"
    equal("the images of the same generator", images[1], images[0])
    assert not torch.equal(images[0], images[2]), "another generator gave the same images"
    noise = torch.randn(B, 3, 8, 8, generator=seeded(seed))
    kept, state = noise.clone(), torch.get_rng_state()
    given_noise = sample(Watched(), prompts, noise=noise)
    equal("where the walk starts from a given noise", given_noise, noise)
    once, order = sample(model, prompts, noise=noise), random.sample(range(B), B)
    equal("the noise that was given, after the walk,", noise, kept)
    assert torch.equal(torch.get_rng_state(), state), "the global random state has changed"
    permuted = sample(model, [prompts[i] for i in order], noise=noise[order])
    close("permuted images", permuted, once[order], atol=1e-4, rtol=1e-3)
    alone = sample(model, prompts[:1], noise=noise[:1])
    close("the first image alone", alone[0], once[0], atol=1e-4, rtol=1e-3)


@pytest.mark.spec("SAMPLE-5")
@solvers
@given(draw.captions, draw.seeds, st.integers(1, 4), st.data())
def test_the_sampler_is_guided_integration(make_model, solver, prompts, seed, N, data):
    model, B = make_model(in_channels=5, img_size=4, depth=1), len(prompts)
    one_each = st.lists(draw.scales, min_size=B, max_size=B).map(torch.tensor)
    w = data.draw(st.sampled_from([0, 1]) | draw.scales | one_each, "w")
    noise = torch.randn(B, 5, 4, 4, generator=seeded(seed))
    texts = *draw.StandIn()(prompts), *draw.StandIn()("")

    def velocity(x, t):
        return flowclip.cfg_velocity(model, x, t, *texts, w)

    with torch.no_grad():
        expected = flowclip.integrate(velocity, noise, N, solver)
    options = {"image_shape": (5, 4, 4), "cfg_scale": w, "solver": solver, "num_steps": N}
    images = sample(model, prompts, noise=noise, **options)
    close("the images", images, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.spec("SAMPLE-5")
def test_the_empty_prompt_is_the_null_text(make_model):
    noise = torch.randn(1, 3, 8, 8)
    unconditional = sample(make_model(), "dog", noise=noise, cfg_scale=0)
    close("the image of the empty prompt", sample(make_model(), "", noise=noise), unconditional)


@pytest.mark.spec("SAMPLE-1")
def test_fifty_steps_unless_told():
    """At 50 times: who asks for the two answers of guidance one by one asks twice at each."""
    model, times = Watched(), set()
    model.register_forward_hook(lambda _, args, v: times.add(args[1][0].item()))
    flowclip.sample_text_conditional(model, draw.StandIn(), "dog", (3, 2, 2), progress=False)
    assert len(times) == 50, f"evaluations at {len(times)} times, expected 50 of Euler"


@pytest.mark.spec("SAMPLE-5")
def test_a_scale_of_seven_and_a_half_unless_told(make_model):
    model, noise = make_model(), torch.randn(1, 3, 8, 8)
    expected = sample(model, "dog", noise=noise, cfg_scale=7.5)
    close("the image", sample(model, "dog", noise=noise), expected)


@pytest.mark.spec("SAMPLE-7")
@pytest.mark.parametrize("enabled", [True, False])
def test_gradients_are_on_afterwards_as_before(enabled):
    with torch.set_grad_enabled(enabled):
        sample(model := Watched(1.0), "dog")
        assert torch.is_grad_enabled() == enabled, f"gradients were {enabled}, and no longer are"
    assert model.answer.requires_grad, "a parameter no longer asks for a gradient"


@pytest.mark.spec("SAMPLE-7")
@pytest.mark.parametrize("cfg_scale", [0, 1, 3.0])
def test_no_graph_and_modes_as_found(cfg_scale):
    model = Watched(1.0).train()
    model.parts[0].eval()
    modes = model.modes()
    images = sample(model, "dog", cfg_scale=cfg_scale)
    assert model.seen, "the model was not asked"
    for during, graph in [*model.seen, (model.modes(), images.requires_grad)]:
        assert during == modes, f"the modes (True: train) became {during}, they were {modes}"
        assert not graph, "a graph is built"


# ---- Beyond the statements ----
@solvers
def test_a_model_of_a_wider_type_does_not_widen_the_state(solver):
    out = flowclip.integrate(lambda x, t: x.double(), torch.ones(1, 2), 2, solver)
    assert out.dtype == torch.float32


@solvers
@given(st.lists(st.floats(-2, 2), min_size=1, max_size=3), draw.steps)
def test_steps_equal_the_loop(solver, values, N):
    x1 = torch.tensor(values).double()[:, None]
    for start, end in zip(values, flowclip.integrate(field, x1, N, solver).flatten().tolist()):
        expected = oracles.solve(lambda x, t: math.sin(3 * x) + t * x, start, N, solver)
        assert end == pytest.approx(expected, abs=1e-5), (solver, start)


def test_the_velocity_is_asked_with_a_time_a_sample_in_float32():
    def velocity(x, t):
        assert t.shape == (2,) and t.dtype == torch.float32 and t[0] == t[1]
        return x

    flowclip.integrate(velocity, torch.randn(2, 1, 1, 1), 3, "heun")


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


def test_the_noise_is_one_draw_and_a_given_one_draws_nothing(make_model):
    model, prompts = make_model(), ["dog", ""]
    drawn = sample(model, prompts, generator=seeded(5))
    noise, state = torch.randn(2, 3, 8, 8, generator=seeded(5)), torch.get_rng_state()
    close("the images", sample(model, prompts, noise=noise), drawn)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_sampler_works_in_float32(make_model):
    noise, prompts = torch.randn(2, 3, 8, 8), ["dog", ""]
    images = sample(make_model(), prompts, noise=noise)
    again = sample(make_model(), tuple(prompts), noise=noise.double(), device="cpu")
    assert torch.equal(again, images) and images.dtype == torch.float32
    assert torch.is_grad_enabled()


def test_clip_is_asked_once_a_drawing_and_not_once_a_step(make_model):
    encoder, noise = draw.StandIn(), torch.randn(1, 3, 8, 8).expand(3, -1, -1, -1)
    options = {"noise": noise, "num_steps": 4, "progress": False}
    flowclip.sample_text_conditional(make_model(), encoder, ["a", "b", ""], (3, 8, 8), **options)
    assert sorted(encoder.asked) == ["", "a", "b"]


def test_the_documented_defaults():
    parameters = inspect.signature(flowclip.sample_text_conditional).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    assert (defaults["image_shape"], defaults["num_steps"]) == ((3, 32, 32), 50)
    assert (defaults["cfg_scale"], defaults["solver"]) == (7.5, "euler")


@pytest.mark.parametrize("accelerator", ["cuda", "mps", None])
def test_the_best_device(monkeypatch, accelerator):
    def current(check_available):
        """Without the check torch names what it was built for, though none is there."""
        name = accelerator if check_available else "xpu"
        return name and torch.device(name)

    monkeypatch.setattr(torch.accelerator, "current_accelerator", current)
    assert flowclip.get_device() == torch.device(accelerator or "cpu")


@pytest.mark.parametrize("precision, native, expected", [
    ("auto", True, True), ("auto", False, False), ("fp32", True, False), ("bf16", False, True),
])  # fmt: skip
def test_auto_precision_is_bf16_where_the_processor_multiplies_it(
    monkeypatch, precision, native, expected
):
    """AVX512-BF16, which every processor with AMX has as well."""
    known = {"avx512_f": True, "avx512_bf16": native}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    with flowclip.autocast("cpu", *([] if precision == "auto" else [precision])):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if expected else torch.float32)


def test_auto_precision_where_nothing_is_known(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
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
