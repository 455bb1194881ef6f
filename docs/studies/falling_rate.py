"""What is a falling rate worth? python docs/studies/falling_rate.py shapes --epochs 6

Trains the model of chapter 8 on a folder three times, from one seed, for equally many steps: at a
constant rate, with --cooldown 0.2, and with a cosine down to 0. One image in ten is kept back. What
is compared is their flow-matching loss, of the raw weights and of the averaged ones.
"""

import argparse
import math
import sys
import warnings
from pathlib import Path

import torch
from judge import held_out_loss

sys.path.insert(0, str(Path(__file__).parents[2]))
import flowclip
import train


class Cosine(train.TextConditionalTrainer):
    """lr (1 + cos(pi i / T)) / 2 at step i of T, after the warm-up (Loshchilov & Hutter 2017)."""

    def train_step(self, images, captions):
        self.highest = vars(self).get("highest", self.lr)
        self.lr = self.highest * (1 + math.cos(math.pi * self.step / self.total_steps)) / 2
        return super().train_step(images, captions)


RATES = {  # kind of trainer, share of the steps in which the rate falls
    "constant": (train.TextConditionalTrainer, 0),
    "falls over the last fifth": (train.TextConditionalTrainer, 0.2),
    "cosine": (Cosine, 0),
}


def run(kind, cooldown, data, encoder, args):
    """-> the trainer, after all its steps."""
    images, labels, captions = data
    torch.manual_seed(0)
    model = flowclip.TextConditionalDiT(
        images.shape[-1], 4, images.shape[1], 128, 4, 4, context_dim=encoder.embed_dim
    )
    batches = train.Batches(images, labels, 64)
    steps = args.epochs * len(batches)
    trainer = kind(
        model, encoder, batches, lambda labels: [captions[label] for label in labels], args.lr,
        warmup=100, ema=args.ema, total_steps=steps, cooldown=cooldown * steps,
    )  # fmt: skip
    trainer.train(args.epochs)
    return trainer


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("data", help="a folder that draw_shapes.py wrote, or any other data of train.py")
    add("--epochs", type=int, default=6, metavar="N", help="(6)")
    add("--lr", type=float, default=1e-3, help="(1e-3)")
    add("--ema", type=float, default=0.99, help="(0.99)")
    return parser.parse_args()


def main():
    args = parse_args()
    images, labels, captions = train.load_data(args.data)
    encoder = flowclip.CLIPTextEncoder("ViT-S-32-alt", "untrained")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    back, rest = order[: len(order) // 10], order[len(order) // 10 :]
    for name, (kind, cooldown) in RATES.items():
        trainer = run(kind, cooldown, (images[rest], labels[rest], captions), encoder, args)
        raw, averaged = (
            held_out_loss(model, encoder, images[back], labels[back], captions, trainer.device)
            for model in (trainer.model, trainer.ema_model)
        )
        print(
            f"{name}: {trainer.step} steps, held-out loss {raw:.4f} of the raw weights, "
            f"{averaged:.4f} of the averaged ones",
            flush=True,
        )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    flowclip.run_script(main)
