"""Better for the same work? python docs/studies/ablate.py --data my_data/train

One change at a time: each case trains the documented model for --epochs from the same seed, with
one setting changed; those called "lr 1e-3, ..." are to be compared with "lr 1e-3 and warm-up".
Training losses are not compared, as some changes define them anew. What is compared is the
flow-matching loss on real test images that no run has seen, at uniform times and with the same
noise for all; and what the judge of docs/studies/judge.py says of drawn images.

"documented, another seed" tells how much is chance. The rows of other EMA decays are of that run,
too. With --minutes all have equal time in place of equal epochs, which is fair to a model whose
steps cost more. Rows are added to OUT/ablation.csv, and a case that has its row is not run again. A
folder --data needs the test images in a folder `test` beside it.
"""

import argparse
import copy
import csv
import itertools
import sys
import time
import warnings
from pathlib import Path
from unittest import mock

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

sys.path.insert(0, str(Path(__file__).parents[2]))
from judge import Court, load_real

import flowclip
import train

SAME = ("data", "clip_weights", "epochs", "minutes", "n")  # a row of other settings is no answer
COLUMNS = (*SAME, "case", "loss", "kept", "frechet", "steps", "took_minutes")


class LogitNormal(train.TextConditionalTrainer):
    """t = sigmoid(N(0, 1)), from the same uniform draws: more times in the middle.

    Esser et al. 2024.
    """

    def train_step(self, images, captions):
        plain = flowclip.flow_matching_loss

        def loss(*args, t, **given):
            return plain(*args, t=torch.special.ndtri(t).sigmoid(), **given)

        with mock.patch.object(flowclip, "flow_matching_loss", loss):
            return super().train_step(images, captions)


class Averages(train.TextConditionalTrainer):
    """Keeps averages of other decays beside its own, in one run.

    Decays above 0.999 begin to differ in the twelfth epoch only.
    """

    decays = (0.9, 0.99)

    def train_step(self, images, captions):
        if self.step == 0:
            self.others = {decay: copy.deepcopy(self.ema_model) for decay in self.decays}
        loss = super().train_step(images, captions)
        for decay, model in self.others.items():
            b = min(decay, (1 + self.step) / (10 + self.step))
            get_ema_multi_avg_fn(b)([*model.parameters()], [*self.model.parameters()], None)
        return loss


class Mirrored(train.Batches):
    """Each image mirrored with probability 1/2, by a coin that is a function of (seed, epoch)."""

    def __iter__(self):
        rand = train.seeded("cpu", self.seed, self.epoch, 2)
        for images, labels in super().__iter__():
            coin = torch.rand(len(images), 1, 1, 1, generator=rand).to(images.device) < 0.5
            yield torch.where(coin, images.flip(-1), images), labels


class Deadline:
    """The epochs of `batches`, one after another, until a time of perf_counter."""

    def __init__(self, batches, until):
        self.batches, self.until = batches, until

    def __iter__(self):
        for self.batches.epoch in itertools.count():
            for batch in self.batches:
                if time.perf_counter() > self.until:
                    return
                yield batch


FAST = {"lr": 1e-3, "warmup": 500}
CASES = {
    "documented": {},
    "documented, another seed": {"seed": 1, "kind": Averages},
    "lr 3e-4 and warm-up": {"lr": 3e-4, "warmup": 500},
    "lr 5e-4 and warm-up": {"lr": 5e-4, "warmup": 500},
    "lr 1e-3 and warm-up": FAST,
    "lr 1e-3, logit-normal t": FAST | {"kind": LogitNormal},
    "lr 1e-3, patches of 2, width 128": FAST
    | {"model": {"patch_size": 2, "embed_dim": 128, "num_heads": 4}},
    "warm-up of 500 steps": {"warmup": 500},
    "logit-normal t": {"kind": LogitNormal},
    "mirrored images": {"batches": Mirrored},
    "second beta 0.95": {"betas": (0.9, 0.95)},
}


def run_case(name, args, data, encoder, device):
    """Train one case, and give (name, steps, minutes, checkpoint) for each average kept."""
    images, labels, captions = data
    torch._dynamo.reset()  # else the model of the ninth case would find its compilations used up
    options = {"seed": 0, "kind": train.TextConditionalTrainer, "batches": train.Batches}
    options |= CASES[name]
    kind, batches = options.pop("kind"), options.pop("batches")
    betas, shape = options.pop("betas", (0.9, 0.999)), options.pop("model", {})
    torch.manual_seed(options["seed"])
    _, channels, _, size = images.shape
    trainer = kind(
        flowclip.TextConditionalDiT(img_size=size, in_channels=channels, **shape),
        encoder,
        batches(images.to(device), labels, 64, options["seed"]),
        lambda labels: [captions[label] for label in labels],
        device=device,
        **options,
    )
    trainer.optimizer.param_groups[0]["betas"] = betas
    if args.compile:
        for block in trainer.model.blocks:
            block.compile()
    trainer.context_of(captions)
    begin = time.perf_counter()
    if args.minutes:
        trainer.dataloader = Deadline(trainer.dataloader, begin + 60 * args.minutes)
    trainer.train(1 if args.minutes else args.epochs)
    minutes = (time.perf_counter() - begin) / 60
    models = {name: trainer.ema_model}
    if kind is Averages:
        models |= {f"EMA {decay:g}": model for decay, model in trainer.others.items()}
        models["no EMA"] = trainer.model
    for case, model in models.items():
        trainer.ema_model, path = model, args.out / f"{case.replace(' ', '-')}.pt"
        trainer.save_checkpoint(path, data=args.data)
        yield case, trainer.step, minutes, path


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", default="cifar10", metavar="D", help="as of train.py (cifar10)")
    add("--clip-weights", default="openai", metavar="W", help="as of train.py (openai)")
    add("--epochs", type=int, default=3, metavar="N", help="epochs a case (3)")
    add("--minutes", type=float, metavar="M", help="train each case for so long instead")
    add("--n", type=int, default=500, metavar="N", help="draws to judge, at w = 3 (500)")
    cases, names = list(CASES), "; ".join(CASES)
    add("--cases", nargs="+", choices=cases, default=cases, metavar="NAME", help=f"{names} (all)")
    add("--compile", action=argparse.BooleanOptionalAction, default=False, help="torch.compile")
    add("--out", type=Path, default=Path("runs/ablation"), metavar="DIR", help="(runs/ablation)")
    return parser.parse_args()


def main():
    args, device = parse_args(), flowclip.get_device()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.minutes:
        args.epochs = ""  # they do not count
    table, same = args.out / "ablation.csv", {name: str(getattr(args, name)) for name in SAME}
    header = ",".join(COLUMNS)
    if not table.exists():
        table.write_text(header + "\n")
    if table.read_text().splitlines()[0] != header:
        raise flowclip.UserError(f"{table} has other columns: move it away, or take another --out")
    with open(table) as file:
        done = {row["case"] for row in csv.DictReader(file) if same.items() <= row.items()}
    learn, _, captions = load_real(args.data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = flowclip.CLIPTextEncoder(pretrained=args.clip_weights, device=device)
    for name in [name for name in args.cases if name not in done]:
        rows = []
        try:
            runs = run_case(name, args, (*learn, captions), encoder, device)
            for case, steps, minutes, path in runs:
                court = Court(path, compile=args.compile)
                loss, heard = court.held_out_loss(), court.hear(args.n)
                row = {
                    "case": case,
                    "loss": f"{loss:.4f}",
                    "kept": f"{heard['kept']:.3f}",
                    "frechet": f"{heard['frechet']:.2f}",
                    "steps": steps,
                    "took_minutes": f"{minutes:.1f}",
                }
                rows.append(row)
        except flowclip.UserError as error:  # a weight is not finite
            rows = [{"case": name, "loss": str(error)}]
        with open(table, "a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerows(same | row for row in rows)  # all, or none
        for row in rows:
            print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    flowclip.run_script(main)
