"""How fast is it here? python docs/studies/benchmark.py: training and sampling on random images.

It drives the trainer of train.py and the sampler of flowclip.py, at the documented sizes.
--literal adds the documented algorithm taken literally, for a ratio: CLIP on every batch, all 77
tokens, float32, two passes a guided step. --grow asks how cost grows with each size.
"""

import argparse
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

sys.path.insert(0, str(Path(__file__).parents[2]))
import flowclip
import train

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PROMPTS = [f"a photo of a {name}" for name in NAMES]  # 7 real tokens each


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock(work, device):
    """-> the seconds that `work` takes."""
    wait(device)
    begin = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - begin


def seconds(work, device, repeat):
    """-> the median time of `work`, after one call that does not count."""
    times = [clock(work, device) for _ in range(1 + repeat)]
    return statistics.median(times[1:])


class Tokens(torch.nn.Module):
    """A text encoder of `count` random tokens a prompt: the clock does not mind what they say."""

    model_name, pretrained, embed_dim, max_length = "random", "none", 512, 77

    def __init__(self, count):
        super().__init__()
        self.count, self.Z = count, torch.nn.Parameter(torch.randn(1, 77, 512), requires_grad=False)

    def forward(self, prompts):
        device = self.Z.device
        lengths = torch.tensor([self.count if prompt else 2 for prompt in prompts], device=device)
        mask = torch.arange(self.max_length, device=device) < lengths[:, None]
        return flowclip.trim_context(self.Z.expand(len(prompts), -1, -1), mask)


class LiteralEncoder(flowclip.CLIPTextEncoder):
    """open_clip's own forward pass over all 77 places, padding too; and all 77 are handed on."""

    def __init__(self, **options):
        super().__init__(**options)
        self.tower.output_tokens = True

    @torch.no_grad()
    def forward(self, prompts):
        ids = self.tokenize(prompts)
        eos = ids.argmax(dim=-1, keepdim=True)
        mask = torch.arange(self.max_length, device=ids.device) <= eos
        return self.tower(ids)[1], mask


class Literal(train.TextConditionalTrainer):
    """The training step as it is written down: in float32, and with nothing kept."""

    def train_step(self, images, captions):
        Z, mask = self.text_encoder(captions)
        null = self.text_encoder([""])
        drop = torch.rand(len(images), device=self.device) < self.text_drop_prob
        context, mask = flowclip.drop_text(Z, mask, *null, drop)
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


def make_trainer(
    args, device, encoder, kind=train.TextConditionalTrainer, compile=False, img_size=32, **sizes
):
    torch.manual_seed(0)
    shape = args.batch_size * args.steps, 3, img_size, img_size
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    labels = torch.arange(len(images)) % 10
    trainer = kind(
        flowclip.TextConditionalDiT(img_size, **sizes),
        encoder,
        train.Batches(images.to(device), labels, args.batch_size),
        lambda labels: [PROMPTS[label] for label in labels],
        device=device,
        precision=args.precision,
    )
    if compile:
        for block in trainer.model.blocks:
            block.compile()
    return trainer


def draw(trainer, args):
    """The ten prompts, 50 guided steps."""
    with flowclip.autocast(trainer.device, args.precision):
        return flowclip.sample_text_conditional(
            trainer.model, trainer.text_encoder, PROMPTS, progress=False
        )


def count_flop(trainer):
    """-> the arithmetic of one training step."""
    images, labels = next(iter(trainer.dataloader))
    with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"):
        trainer.train_step(images, trainer.caption_fn(labels))
    return counter.get_total_flops()


def matrix_peak(device, precision, n):
    """-> FLOP/s of a large matrix product."""
    a, b = torch.randn(2, n, n, device=device)
    with flowclip.autocast(device, precision):
        if torch.is_autocast_enabled(device.type):
            a, b = a.bfloat16(), b.bfloat16()
    return 2 * n**3 / seconds(lambda: a @ b, device, 7)


def memory(device):
    """-> bytes: the most that was held at once, by the device or by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(args, device):
    """-> the lines that are always printed."""
    trainer = make_trainer(args, device, Tokens(7), compile=args.compile)
    work = count_flop(trainer)
    step = seconds(lambda: trainer.train(1), device, args.repeat) / args.steps
    sample = seconds(lambda: draw(trainer, args), device, args.repeat)
    peak = matrix_peak(device, args.precision, 8192 if device.type == "cuda" else 2048)
    batch = args.batch_size
    return {
        "training": f"{batch / step:,.0f} images/s, {1000 * step:.1f} ms a step of {batch}",
        "sampling": f"{10 / sample:,.1f} images/s, {sample:.2f} s for 10 prompts x 50 guided steps",
        "share of the matrix peak": f"{work / step / peak:.0%} of {peak / 1e9:,.0f} GFLOP/s",
        "peak memory": f"{memory(device) / 2**20:,.0f} MiB",
    }


def compare(args, device):
    """Ours and the literal algorithm in turns, so that all see the same machine.

    -> the medians and their ratios.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = flowclip.CLIPTextEncoder(pretrained="untrained", device=device)
        literal_encoder = LiteralEncoder(pretrained="untrained", device=device)
    noise = torch.randn(10, 3, 32, 32, device=device)
    literal = make_trainer(args, device, literal_encoder, Literal)
    ways = {"ours": make_trainer(args, device, encoder)}
    if args.compile:
        ways["compiled"] = make_trainer(args, device, encoder, compile=True)

    work = {
        ("training", "literal"): lambda: literal.train(1),
        ("sampling", "literal"): lambda: literal_sample(literal.model, literal_encoder, noise, 50),
    }
    for name, trainer in ways.items():
        work["training", name] = lambda trainer=trainer: trainer.train(1)
        work["sampling", name] = lambda trainer=trainer: draw(trainer, args)
    turns = []
    for _ in range(1 + args.repeat):  # the first does not count
        turns.append({name: clock(call, device) for name, call in work.items()})

    medians = {name: statistics.median(turn[name] for turn in turns[1:]) for name in work}
    rows = {}
    for what, unit, scale in [
        ("training", "ms a step", 1000 / args.steps),
        ("sampling", "s for 10 prompts", 1),
    ]:
        for name in ["literal", *ways]:
            median, ratio = medians[what, name], medians[what, "literal"] / medians[what, name]
            rows[f"{what}, {name}"] = f"{median * scale:,.2f} {unit}: {ratio:.1f}x"
    return rows


GROWTH = {  # what grows: (its size, batch size, sizes of the model, tokens)
    "batch": [(n, n, {}, 7) for n in (16, 32, 64, 128, 256, 512)],
    "image side, batch 16": [(n, 16, {"img_size": n}, 7) for n in (16, 32, 64)],
    "blocks, batch 64": [(n, 64, {"depth": n}, 7) for n in (3, 6, 12)],
    "embed_dim, batch 64": [(n, 64, {"embed_dim": n}, 7) for n in (128, 256, 512)],
    "tokens, batch 64": [(n, 64, {}, n) for n in (7, 20, 77)],
}


def step_cost(args, device, batch, sizes, tokens):
    """-> (ms a step, GFLOP a step, peak memory in MiB) of training.

    It runs in a process of its own, for the sake of its memory.
    """
    args.batch_size, args.steps = batch, 3
    trainer = make_trainer(args, device, Tokens(tokens), compile=args.compile, **sizes)
    step = seconds(lambda: trainer.train(1), device, args.repeat) / args.steps
    peak = memory(device)
    return 1000 * step, count_flop(trainer) / 1e9, peak / 2**20


def grow(args, device):
    """Print how the cost of a training step grows, one size changed at a time.

    -> {size: [(n, batch, ms, GFLOP, MiB)]}
    """
    table, fresh = {}, multiprocessing.get_context("spawn")
    for name, cases in GROWTH.items():
        print(f"\n| {name} | ms a step | ms an image | GFLOP a step | peak memory, MiB |")
        print("|---|---|---|---|---|")
        for n, batch, sizes, tokens in cases:
            with ProcessPoolExecutor(1, fresh) as pool:
                ms, flop, mib = pool.submit(step_cost, args, device, batch, sizes, tokens).result()
            print(f"| {n} | {ms:,.0f} | {ms / batch:.1f} | {flop:,.0f} | {mib:,.0f} |", flush=True)
            table.setdefault(name, []).append((n, batch, ms, flop, mib))
    return table


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--device", help="cuda, mps or cpu (the best at hand)")
    add("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="(auto)")
    add("--compile", action="store_true", help="torch.compile the model")
    add("--batch-size", type=int, default=64, metavar="N", help="images a step (64)")
    add("--steps", type=int, default=10, metavar="N", help="training steps a measurement (10)")
    add("--repeat", type=int, default=3, metavar="N", help="measurements a median (3)")
    add("--literal", action="store_true", help="also the algorithm taken literally, in turns")
    add("--grow", action="store_true", help="only how cost grows with each size")
    return parser.parse_args()


def main():
    args = parse_args()
    device = torch.device(args.device or flowclip.get_device())
    with flowclip.autocast(device, args.precision):
        precision = "bf16" if torch.is_autocast_enabled(device.type) else "fp32"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(
        f"{device} ({name}), torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{precision}, {'' if args.compile else 'not '}compiled"
    )
    if args.grow:
        grow(args, device)
        return
    lines = measure(args, device) | (compare(args, device) if args.literal else {})
    for what, figure in lines.items():
        print(f"{what:<26}{figure}")


if __name__ == "__main__":
    flowclip.run_script(main)
