"""A label, a vector or tokens? python docs/studies/label_vs_tokens.py shapes

Three ways to say what shall be drawn, on the pictures of draw_shapes.py, with the same backbone,
the same pictures, steps and seeds:

    class   ConditionalDiT, c = e(t) + e(y), a class for each caption of the training
    pooled  DiT with c = e(t) + MLP(Z at the EOS token): the sentence as one vector
    tokens  TextConditionalDiT: cross-attention to all of Z

Each is trained by train.py's trainer and judged by its pixels, as compose.py does. Rows go to
OUT/ways.csv. With --clip-weights, a file that train_clip.py wrote, `pooled` and `tokens` read a
text tower that was trained.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))
import compose
import draw_shapes
import judge

import flowclip
import train

WAYS = ("class", "pooled", "tokens")


# ---- The ways: each gives the trainer an encoder, (prompts) -> context, mask, and a model of these
class Labels(nn.Module):
    """A caption is a number from 1 on, given as context [B, 1, 1]; the null text is one more.

    Not from 0, as a vector of zeros is padding to the trainer.
    """

    def __init__(self, captions):
        super().__init__()
        self.label = {caption: k for k, caption in enumerate([*captions, ""], 1)}

    def forward(self, prompts):
        labels = torch.tensor([self.label[prompt] for prompt in prompts])
        return labels[:, None, None].float(), torch.ones(len(labels), 1, dtype=torch.bool)


class ByClass(flowclip.ConditionalDiT):
    def forward(self, xt, t, context, mask):
        return super().forward(xt, t, context[:, 0, 0].long() - 1)


class Pooled(nn.Module):
    """A caption is Z at its EOS token, given as context [B, 1, D]."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, prompts):
        _, pooled = self.encoder.encode(prompts, return_pooled=True)
        return pooled[:, None], torch.ones(len(pooled), 1, dtype=torch.bool)


class ByPooled(flowclip.DiT):
    """The vector takes the same kind of way to c as the time does: two layers with SiLU between."""

    def __init__(self, *args, pooled_dim, **kwargs):
        super().__init__(*args, **kwargs)
        cond_dim = 4 * self.embed_dim
        self.pooled_mlp = nn.Sequential(
            nn.Linear(pooled_dim, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim)
        )
        self.pooled_mlp.apply(self.initialize_weights)

    def forward(self, xt, t, context, mask):
        return self.backbone(xt, t, e_y=self.pooled_mlp(context[:, 0]))


def make(way, encoder, captions, size, patch_size=4):
    """-> (what encodes the prompts, the model), both new."""
    sizes = dict(img_size=size, patch_size=patch_size, embed_dim=128, depth=4, num_heads=4)
    if way == "class":
        return Labels(captions), ByClass(**sizes, num_classes=len(captions))
    if way == "pooled":
        return Pooled(encoder), ByPooled(**sizes, pooled_dim=encoder.embed_dim)
    return encoder, flowclip.TextConditionalDiT(**sizes, context_dim=encoder.embed_dim)


# ---- A run ---------------------------------------------------------------------------------------
def run(way, encoder, data, args):
    """Train one way -> (parameters, steps, loss, seconds), {kind: shares that are right}."""
    images, labels, captions = data
    torch.manual_seed(args.seed)
    encoder, model = make(way, encoder, captions, images.shape[-1])
    batches = train.Batches(images, labels, args.batch_size, args.seed)
    trainer = train.TextConditionalTrainer(
        model, encoder, batches, lambda labels: [captions[label] for label in labels],
        lr=args.lr, warmup=args.warmup, ema=args.ema, seed=args.seed,
    )  # fmt: skip
    trainer.optimizer.param_groups[0]["betas"] = (0.9, 0.95)  # with 0.999 runs collapsed
    for block in model.blocks:
        block.compile()
    begin = time.perf_counter()
    for epoch in range(args.epochs + args.last_epochs):
        if epoch == args.epochs:
            trainer.lr = args.last_lr  # shapes become clean once the rate falls
        print(f"{way}, epoch {epoch + 1}: {trainer.train(1)[-1]:.4f}", file=sys.stderr, flush=True)
    numbers = {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "steps": trainer.step, "loss": trainer.losses[-1], "seconds": time.perf_counter() - begin,
    }  # fmt: skip
    table, rand = {}, np.random.default_rng(args.seed)
    for kind, known in draw_shapes.split_captions().items():
        asked = compose.choose(known, args.n, rand)
        if way != "class" or set(known) <= set(captions):  # a class cannot even be asked for others
            drawn = compose.draw(trainer.ema_model, encoder, asked, args.cfg, seed=args.seed)
            table[kind] = compose.shares(asked, drawn)
    return numbers, table


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("data", type=Path, help="a folder that draw_shapes.py wrote")
    add("--way", nargs="+", choices=WAYS, default=WAYS, metavar="WAY", help=", ".join(WAYS))
    add("--clip", default="ViT-S-32-alt", metavar="NAME", help="the text tower (ViT-S-32-alt)")
    add("--clip-weights", default="untrained", metavar="PATH", help="of train_clip.py (untrained)")
    add("--epochs", type=int, default=10, metavar="N", help="at --lr (10)")
    add("--last-epochs", type=int, default=2, metavar="N", help="at --last-lr (2)")
    add("--batch-size", type=int, default=64, metavar="N", help="images per step (64)")
    add("--lr", type=float, default=5e-4, metavar="X", help="learning rate (5e-4)")
    add("--last-lr", type=float, default=5e-5, metavar="X", help="at the end (5e-5)")
    add("--warmup", type=int, default=100, metavar="N", help="steps in which it rises (100)")
    add("--ema", type=float, default=0.999, metavar="X", help="decay of the average (0.999)")
    add("--cfg", type=float, default=3.0, metavar="W", help="guidance scale (3)")
    add("--n", type=int, default=500, metavar="N", help="drawings of each kind (500)")
    add("--seed", type=int, default=0, metavar="N", help="of weights, order, noise (0)")
    add("--out", type=Path, default=Path("runs"), metavar="DIR", help="for ways.csv (runs)")
    return parser.parse_args()


def main():
    args = parse_args()
    data = train.load_data(str(args.data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the tower is untrained
        encoder = flowclip.CLIPTextEncoder(args.clip, args.clip_weights)
    args.out.mkdir(parents=True, exist_ok=True)
    print(compose.line("way", "text weights", "captions", *draw_shapes.SCORES))
    print(compose.line(*["---"] * (3 + len(draw_shapes.SCORES))))
    for way in args.way:
        numbers, table = run(way, encoder, data, args)
        for kind, scores in table.items():
            cells = [
                f"{scores[name][0]:.1%}" if name in scores else "" for name in draw_shapes.SCORES
            ]
            print(compose.line(way, args.clip_weights, kind, *cells), flush=True)
            row = vars(args) | {"way": way} | numbers | {"kind": kind}
            row |= {name: scores.get(name, ("",))[0] for name in draw_shapes.SCORES}
            judge.add_row(args.out / "ways.csv", row)
        print(", ".join(f"{name} {number:,.4g}" for name, number in numbers.items()), flush=True)


if __name__ == "__main__":
    flowclip.run_script(main)
