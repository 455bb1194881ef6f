"""How fast is it here? python tests/benchmark.py: training and sampling of the documented model on random images.

It drives the trainer of train.py and the sampler of flowclip.py. --literal adds the documented algorithm taken literally, for
a ratio: CLIP on every batch, all 77 tokens, float32, two passes a guided step. --grow asks how cost grows with each size.
"""

import multiprocessing
import platform
import resource
import statistics
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent))
import flowclip
import train
from sample import Parser, number, run_script

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PROMPTS = [f"a photo of a {name}" for name in NAMES]  # 7 real tokens each


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work, device, repeat):
    """-> the median time of `work`, after one call that does not count."""
    times = []
    for _ in range(repeat + 1):
        wait(device)
        begin = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


class Tokens(torch.nn.Module):
    """A text encoder that gives `count` random tokens a prompt: what they say does not matter to the clock."""

    model_name, pretrained, embed_dim, max_length = "random", "none", 512, 77

    def __init__(self, count):
        super().__init__()
        self.count, self.Z = count, torch.nn.Parameter(torch.randn(1, 77, 512), requires_grad=False)

    def forward(self, prompts):
        lengths = torch.tensor([self.count if prompt else 2 for prompt in prompts], device=self.Z.device)
        return self.Z.expand(len(prompts), -1, -1), torch.arange(77, device=self.Z.device) < lengths[:, None]


class LiteralEncoder(flowclip.CLIPTextEncoder):
    """open_clip's own forward pass over all 77 places, padding too."""

    def __init__(self, **options):
        super().__init__(**options)
        self.tower.output_tokens = True

    @torch.no_grad()
    def forward(self, prompts):
        ids = self.tokenize(prompts)
        return self.tower(ids)[1], torch.arange(self.max_length, device=ids.device) <= ids.argmax(dim=-1, keepdim=True)


class Literal(train.TextConditionalTrainer):
    """The training step as it is written down, with nothing kept."""

    def train_step(self, images, captions):
        Z, mask = self.text_encoder(captions)
        null = self.text_encoder([""])
        context, mask = flowclip.drop_text(Z, mask, *null, torch.rand(len(images), device=self.device) < self.text_drop_prob)
        loss = flowclip.flow_matching_loss(self.model, images, context, mask)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return loss.detach()


def literal_sample(model, encoder, noise, steps, w=7.5):
    Z, mask = encoder(PROMPTS)
    null, null_mask = (tensor.expand(len(PROMPTS), *tensor.shape[1:]) for tensor in encoder([""]))

    def velocity(x, t):
        v_cond, v_uncond = model(x, t, Z, mask), model(x, t, null, null_mask)
        return v_uncond + w * (v_cond - v_uncond)

    with torch.no_grad():
        return flowclip.integrate(velocity, noise, steps)


def make_trainer(args, device, kind=train.TextConditionalTrainer, encoder=None, **sizes):
    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 256, "depth": 6, "num_heads": 8} | sizes
    torch.manual_seed(0)
    images = torch.randint(0, 256, (args.batch_size * args.steps, 3, sizes["img_size"], sizes["img_size"]), dtype=torch.uint8)
    batches = train.Batches(images.to(device), torch.arange(len(images)) % 10, args.batch_size)
    model = flowclip.TextConditionalDiT(**sizes)
    return kind(
        model, encoder or Tokens(7), batches, lambda labels: [PROMPTS[label] for label in labels.tolist()], device=device,
        precision="fp32" if kind is Literal else args.precision, compile=args.compile and kind is not Literal,
    )  # fmt: skip


def epoch(trainer):
    trainer.recent = []
    return trainer.train(1)


def matrix_peak(device, precision, n):
    """-> FLOP/s of a large matrix product."""
    with flowclip.autocast(device, precision):
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32
    a, b = torch.randn(2, n, n, device=device, dtype=dtype)
    return 2 * n**3 / seconds(lambda: a @ b, device, 7)


def memory(device):
    """-> bytes: the most that was held at once, by the device or by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def sampler(trainer, args, encoder=None, prompts=PROMPTS):
    def work():
        with flowclip.autocast(trainer.device, args.precision):
            return flowclip.sample_text_conditional(trainer.model, encoder or trainer.text_encoder, prompts, progress=False)

    return work


def measure(args, device):
    trainer = make_trainer(args, device)
    images, labels = next(iter(trainer.dataloader))
    with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"):
        trainer.train_step(images, trainer.caption_fn(labels))
    step = seconds(lambda: epoch(trainer), device, args.repeat) / args.steps
    sample = seconds(sampler(trainer, args), device, args.repeat)
    peak = matrix_peak(device, args.precision, 8192 if device.type == "cuda" else 2048)
    return {
        "training": f"{args.batch_size / step:,.0f} images/s, {1000 * step:.1f} ms a step of {args.batch_size}",
        "sampling": f"{10 / sample:,.1f} images/s, {sample:.2f} s for 10 prompts x 50 guided steps",
        "share of the matrix peak": f"{counter.get_total_flops() / step / peak:.0%} of {peak / 1e9:,.0f} GFLOP/s",
        "peak memory": f"{memory(device) / 2**20:,.0f} MiB",
    }


def compare(args, device):
    """Ours and the literal algorithm in turns, so that all see the same machine -> the medians and their ratios."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = flowclip.CLIPTextEncoder(pretrained="untrained", device=device)
        literal_encoder = LiteralEncoder(pretrained="untrained", device=device)
    ways = {"literal": (Literal, False), "ours": (train.TextConditionalTrainer, False)}
    if args.compile:
        ways["compiled"] = (train.TextConditionalTrainer, True)
    noise, work, times = torch.randn(10, 3, 32, 32, device=device), {}, {}
    for name, (kind, args.compile) in ways.items():
        trainer = make_trainer(args, device, kind, literal_encoder if name == "literal" else encoder)
        work["training", name] = lambda trainer=trainer: epoch(trainer)
        work["sampling", name] = sampler(trainer, args, encoder)
        if name == "literal":
            work["sampling", name] = lambda trainer=trainer: literal_sample(trainer.model, literal_encoder, noise, 50)
    for turn in range(args.repeat + 1):
        for name, call in work.items():
            wait(device)
            begin = time.perf_counter()
            call()
            wait(device)
            if turn:
                times.setdefault(name, []).append(time.perf_counter() - begin)
    medians, rows = {name: statistics.median(values) for name, values in times.items()}, {}
    for what, unit, scale in (("training", "ms a step", 1000 / args.steps), ("sampling", "s for 10 prompts", 1)):
        for name in ways:
            median = medians[what, name]
            rows[f"{what}, {name}"] = f"{median * scale:,.2f} {unit}: {medians[what, 'literal'] / median:.1f}x"
    return rows


GROWTH = {
    "batch": [(n, n, {}, 7) for n in (16, 32, 64, 128, 256, 512)],
    "image side, batch 16": [(n, 16, {"img_size": n}, 7) for n in (16, 32, 64)],
    "blocks, batch 64": [(n, 64, {"depth": n}, 7) for n in (3, 6, 12)],
    "embed_dim, batch 64": [(n, 64, {"embed_dim": n}, 7) for n in (128, 256, 512)],
    "tokens, batch 64": [(n, 64, {}, n) for n in (7, 20, 77)],
}


def step_cost(args, device, batch, sizes, tokens):
    """-> (ms a step, GFLOP a step, peak memory in MiB) of training; run in a process of its own for the memory's sake."""
    args.batch_size, args.steps = batch, 3
    trainer = make_trainer(args, device, encoder=Tokens(tokens), **sizes)
    step = seconds(lambda: epoch(trainer), device, args.repeat) / args.steps
    peak = memory(device)
    images, labels = next(iter(trainer.dataloader))
    with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"):
        trainer.train_step(images, trainer.caption_fn(labels))
    return 1000 * step, counter.get_total_flops() / 1e9, peak / 2**20


def grow(args, device):
    """Print how the cost of a training step grows, one size changed at a time -> {size: [(n, batch, ms, GFLOP, MiB)]}."""
    table, fresh = {}, multiprocessing.get_context("spawn")
    for name, cases in GROWTH.items():
        print(f"\n| {name} | ms a step | ms an image | GFLOP a step | peak memory, MiB |\n|---|---|---|---|---|")
        for n, batch, sizes, tokens in cases:
            with ProcessPoolExecutor(1, fresh) as pool:
                ms, flop, mib = pool.submit(step_cost, args, device, batch, sizes, tokens).result()
            print(f"| {n} | {ms:,.0f} | {ms / batch:.1f} | {flop:,.0f} | {mib:,.0f} |", flush=True)
            table.setdefault(name, []).append((n, batch, ms, flop, mib))
    return table


def parse_args():
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--device", default=None, help="cuda, mps or cpu (the best at hand)")
    add("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="as of train.py (auto)")
    add("--compile", action="store_true", help="torch.compile the model")
    add("--batch-size", type=number(int, 1), default=64, metavar="N", help="images a step (64)")
    add("--steps", type=number(int, 1), default=10, metavar="N", help="training steps a measurement (10)")
    add("--repeat", type=number(int, 1), default=3, metavar="N", help="measurements, of which the median is taken (3)")
    add("--literal", action="store_true", help="also the documented algorithm taken literally, in turns")
    add("--grow", action="store_true", help="how cost grows with batch, image, depth, width and tokens; nothing else")
    return parser.parse_args()


def main():
    args = parse_args()
    device = torch.device(args.device or flowclip.get_device())
    with flowclip.autocast(device, args.precision):
        bf16 = torch.is_autocast_enabled(device.type)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    how = f"{torch.get_num_threads()} threads, {'bf16' if bf16 else 'fp32'}, {'' if args.compile else 'not '}compiled"
    print(f"{device} ({name}), torch {torch.__version__}, {how}")
    if args.grow:
        grow(args, device)
        return
    for what, figure in (measure(args, device) | (compare(args, device) if args.literal else {})).items():
        print(f"{what:<26}{figure}")


if __name__ == "__main__":
    run_script(main, "")
