"""Why do runs fall? python docs/studies/collapse.py shapes --lr 1e-3 2e-3

Trains the small model of chapter 8 on the pictures of draw_shapes.py, and every 100 steps looks
inside the averaged model, at 64 images of the first batch: the RMS of the residual stream, how much
of it still differs between patches, the largest attention score of the first block, the largest
1 + scale of an AdaLN. At every step it compares the gradient g with v, AdamW's memory of g^2: "rms"
is the root mean square of g / sqrt(v) over one weight matrix or bias, the largest of all of them
and of the steps since the last row (Wortsman et al. 2023). A run has fallen when its loss is that
of a model that does not see x_t: 1 + the variance of the images about their pixel means. Rows go to
OUT/collapse.csv, and OUT/collapse.png shows three of the columns, a line per run.
--start zero leaves the last bias at zero; batch takes the first batch's mean, as [TRAIN-8] says;
data takes that of every seventh image. --resume goes on where a run of the same OUT was stopped;
--begin PATH goes on from a checkpoint of any run, with the rate, seed and beta that are asked for.

    python docs/studies/collapse.py data/cifar10-jpeg/test --checkpoint runs/cifar10/checkpoint.pt

looks into runs that train.py has made, and prints the first four of these numbers.
"""

import argparse
import csv
import sys
import warnings
from itertools import cycle
from operator import itemgetter
from pathlib import Path

import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[2]))
import flowclip
import sample
import train

COLUMNS = (
    "data", "start", "lr", "beta2", "change", "seed",
    "step", "loss", "stream", "differs", "score", "scale", "rms",
)  # fmt: skip
RUN = COLUMNS[:6]  # what tells one run from another
STARTS = {  # of the last bias, as the picture says it
    "zero": "last bias 0 at the start",
    "batch": "minus the mean patch of a batch",
    "data": "minus the mean patch of a seventh",
}
COLORS = "tab:red", "tab:blue", "tab:green", "tab:orange", "tab:purple", "tab:gray"
PANELS = {
    "loss": "flow-matching loss",
    "differs": "share of the stream that differs",
    "rms": "largest RMS of g / sqrt(v)",
}


class Inside:
    """What the blocks of a model hold in one forward pass."""

    def __init__(self, model):
        self.model, self.streams, self.scores, self.scales = model, [], [], []
        for block in model.blocks:
            block.register_forward_hook(lambda _, __, x: self.streams.append(x.float()))
        first = model.blocks[0].self_attn
        first.q_proj.register_forward_hook(lambda _, __, q: setattr(self, "q", q.float()))
        first.k_proj.register_forward_hook(lambda _, __, k: self.score(first, k.float()))
        for module in model.modules():
            if isinstance(module, flowclip.AdaLN):
                module.linear.register_forward_hook(lambda _, __, y: self.scale(y.float()))

    def score(self, attention, k):
        q, k = attention.split_heads(self.q), attention.split_heads(k)
        self.scores.append((q @ k.mT * attention.scale).abs().max().item())

    def scale(self, scale_and_shift):
        self.scales.append((1 + scale_and_shift.chunk(2, dim=-1)[0]).abs().max().item())

    @torch.no_grad()
    def look(self, *inputs):
        """-> RMS of the stream, the share of it that differs between patches, score, 1 + scale."""
        self.streams, self.scores, self.scales = [], [], []
        self.model(*inputs)
        x = torch.stack(self.streams)
        differs = (x - x.mean(dim=2, keepdim=True)).square().mean() / x.square().mean()
        return (x.square().mean().sqrt().item(), differs.item(), max(self.scores), max(self.scales))


def update_rms(optimizer):
    """weight -> the root mean square of its g / sqrt(v), as AdamW divides them, after a step."""
    beta2, found = optimizer.param_groups[0]["betas"][1], {}
    for weight, state in optimizer.state.items():
        v = state["exp_avg_sq"] / (1 - beta2 ** state["step"].item())
        found[weight] = (weight.grad / v.clamp(min=1e-16).sqrt()).square().mean().sqrt().item()
    return found


def normalize_queries_and_keys(trainer, _):
    """Of a head's query or key only the direction counts; its length is sqrt(d_head)."""

    def normalize(project, inputs, x):
        heads = x.unflatten(-1, (trainer.model.blocks[0].self_attn.num_heads, -1))
        return torch.nn.functional.rms_norm(heads, heads.shape[-1:]).flatten(-2)

    for model in trainer.model, trainer.ema_model:
        for name, module in model.named_modules():
            if name.endswith(("q_proj", "k_proj")):
                module.register_forward_hook(normalize)


def clip_gradient(trainer, _):
    """The norm of the gradient is at most 0.5."""

    def clip(*_):
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 0.5)

    trainer.optimizer.register_step_pre_hook(clip)


def clip_update(trainer, _):
    """A weight's rate is divided by its RMS of g / sqrt(v), where that is above 1."""
    weights, before = [*trainer.model.parameters()], []

    @torch.no_grad()
    def keep(*_):
        before[:] = [weight.clone() for weight in weights]

    @torch.no_grad()
    def clip(optimizer, *_):
        rms = update_rms(optimizer)
        for weight, old in zip(weights, before):
            weight.lerp_(old, 1 - 1 / max(1, rms[weight]))

    trainer.optimizer.register_step_pre_hook(keep)
    trainer.optimizer.register_step_post_hook(clip)


def let_rate_fall(trainer, steps):
    """The rate falls to 0 over the last 1,500 steps."""
    trainer.total_steps, trainer.cooldown = steps, 1500


def compute_in_float32(trainer, _):
    """No product is made in bfloat16."""
    trainer.autocast = flowclip.autocast(trainer.device, "fp32")


CHANGES = {  # of a trainer, before it goes on
    "none": lambda trainer, steps: None,
    "normalize-qk": normalize_queries_and_keys,
    "clip-gradient": clip_gradient,
    "clip-update": clip_update,
    "falling-rate": let_rate_fall,
    "fp32": compute_in_float32,
}


def run(data, encoder, start, lr, seed, args):
    images, labels, captions = data
    _, channels, _, size = images.shape
    torch.manual_seed(seed)
    model = flowclip.TextConditionalDiT(
        size, 4 if size > 8 else 2, channels, 128, 4, 4, context_dim=encoder.embed_dim
    )
    batches = train.Batches(images, labels, 64, seed)
    trainer = train.TextConditionalTrainer(
        model, encoder, batches, lambda labels: [captions[label] for label in labels], lr,
        warmup=100, ema=0.99, seed=seed,
    )  # fmt: skip
    begin = trainer.start_at_mean
    trainer.start_at_mean = {
        "zero": lambda _: None,
        "batch": begin,
        "data": lambda _: begin(flowclip.normalize_images(images[::7])),
    }[start]
    if args.compile:
        flowclip.compile_blocks(model)
    this_run = [start, lr, args.beta2, args.change, seed]
    kept = args.out / f"{'-'.join(map(str, this_run))}.pt"
    if args.resume and kept.exists():
        trainer.resume(kept)
    elif args.begin:
        trainer.resume(args.begin)
    trainer.optimizer.param_groups[0]["betas"] = 0.9, args.beta2
    CHANGES[args.change](trainer, args.steps)
    inside = Inside(trainer.ema_model)  # a copy: what is trained is looked at by nobody
    seen = []  # of each weight and step since the last row
    trainer.optimizer.register_step_post_hook(
        lambda optimizer, *_: seen.extend(update_rms(optimizer).values())
    )
    look_at, some = next(iter(train.Batches(images, labels, 64, seed)))
    x1, t = torch.randn_like(look_at), torch.linspace(0.02, 0.98, len(look_at))
    xt, _ = flowclip.interpolate(look_at, x1, t)
    texts = [*trainer.context_of([captions[label] for label in some])]
    while trainer.step < args.steps:
        until = trainer.step + args.every
        while trainer.step < until:
            trainer.train(1, until)
        losses = [row.split(",")[2] for row in trainer.rows[-args.every // 10 :]]
        with trainer.autocast:
            found = inside.look(xt, t, *texts)
        loss = sum(map(float, losses)) / len(losses)
        row = [args.data, *this_run, trainer.step, f"{loss:.4f}"]
        row += [f"{number:.4g}" for number in (*found, torch.tensor(seen).max().item())]
        seen.clear()
        with open(args.out / "collapse.csv", "a") as file:
            csv.writer(file).writerow(row)
        trainer.save_checkpoint(kept)
        if trainer.step % 1000 < args.every:
            print(*(f"{name} {cell}" for name, cell in zip(COLUMNS, row)), flush=True)


def look_into(paths, data):
    """The same numbers of finished runs, at 64 images that are spread over the data."""
    images, labels, captions = data
    some = torch.linspace(0, len(images) - 1, 64).long()
    x0 = flowclip.normalize_images(images[some])
    x1 = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.02, 0.98, len(x0))
    xt, _ = flowclip.interpolate(x0, x1, t)
    for path in paths:
        model, encoder, meta = sample.load(path)
        texts = encoder([captions[label] for label in labels[some]])
        inputs = [tensor.to(texts[0].device) for tensor in (xt, t, *texts)]
        with flowclip.autocast(inputs[0].device):
            found = Inside(model).look(*inputs)
        print(meta["step"], *(f"{name} {number:.4g}" for name, number in zip(COLUMNS[8:], found)))


def draw(path):
    """A line for each run of the table; runs that differ by their seed alone have one color."""
    with open(path) as file:
        rows = [*csv.DictReader(file)]
    varied = [name for name in RUN[1:-1] if len({row[name] for row in rows}) > 1]

    def said(row):
        return ", ".join(
            STARTS[row["start"]] if name == "start" else f"{name} {row[name]}" for name in varied
        )

    colors = dict(zip(dict.fromkeys(map(said, rows)), cycle(COLORS)))
    figure = Figure((11, 3.3), 110, layout="constrained")
    for axis, (column, title) in zip(figure.subplots(1, 3), PANELS.items()):
        for run_of in dict.fromkeys(map(itemgetter(*RUN), rows)):
            mine = [row for row in rows if itemgetter(*RUN)(row) == run_of]
            steps, values = zip(*((int(row["step"]), float(row[column])) for row in mine))
            axis.plot(steps, values, colors[said(mine[0])], label=said(mine[0]))
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step")
        axis.set_yscale("linear" if column == "loss" else "log")
    handles, labels = axis.get_legend_handles_labels()
    first = {label: handle for handle, label in zip(handles, labels)}
    if varied:
        figure.legend(
            first.values(), first.keys(), frameon=False, loc="outside lower center", ncols=3
        )
    figure.savefig(path.with_suffix(".png"))


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("data", help="a folder that draw_shapes.py wrote, or any other data of train.py")
    add("--start", nargs="+", choices=[*STARTS], default=["batch"], help="(batch)")
    add("--lr", type=float, nargs="+", default=[1e-3, 2e-3], help="(1e-3 2e-3)")
    add("--seeds", type=int, nargs="+", default=[0], help="(0)")
    add("--beta2", type=float, default=0.999, help="of AdamW (0.999)")
    add("--change", choices=[*CHANGES], default="none", help="one more thing (none)")
    add("--steps", type=int, default=2800, metavar="N", help="(2800)")
    add("--every", type=int, default=100, metavar="N", help="steps between looks, tens (100)")
    add("--compile", action="store_true", help="torch.compile the blocks that are trained")
    add("--resume", action="store_true", help="go on from the checkpoints in OUT")
    add("--begin", metavar="PATH", help="start from this checkpoint, not anew")
    add("--checkpoint", nargs="+", default=[], metavar="PATH", help="look into these, train none")
    add("--out", type=Path, default=Path("runs"), metavar="DIR", help="for collapse.csv (runs)")
    return parser.parse_args()


def main():
    args = parse_args()
    data = train.load_data(args.data)
    if args.checkpoint:
        return look_into(args.checkpoint, data)
    encoder = flowclip.CLIPTextEncoder("ViT-S-32-alt", "untrained")
    args.out.mkdir(parents=True, exist_ok=True)
    table = args.out / "collapse.csv"
    if not (args.resume and table.exists()):
        with open(table, "w") as file:
            csv.writer(file).writerow(COLUMNS)
    for seed in args.seeds:
        for lr in args.lr:
            for start in args.start:
                run(data, encoder, start, lr, seed, args)
    draw(table)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    flowclip.run_script(main)
