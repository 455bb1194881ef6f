"""Better for the same work? python tests/ablate.py --data my_data/train: one change at a time, the same seed, one table.

Each case trains the documented model for --epochs, with one setting changed. What is compared is not the training loss, which
some changes define anew, but the flow-matching loss on real test images that no run has seen, at uniform times and with the
same noise for all; and what the judge of tests/judge.py says of drawn images. "documented, another seed" tells how much is
chance, and the rows of other EMA decays are of that run, too. Rows are added to OUT/ablation.csv; a case that has its row is
not run again. A folder --data needs the test images in a folder `test` beside it.
"""

import argparse
import copy
import csv
import sys
import time
import warnings
from pathlib import Path
from unittest import mock

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

sys.path.insert(0, str(Path(__file__).parent.parent))
import flowclip
import train
from sample import Parser, number, run_script
from tests.judge import Court, load_real

SAME = ("data", "clip_weights", "epochs", "n")  # of the command line: rows with other values are no answer
COLUMNS = (*SAME, "case", "loss", "kept", "frechet", "minutes")


class LogitNormal(train.TextConditionalTrainer):
    """t = sigmoid(N(0, 1)): more times in the middle (Esser et al. 2024), from the same uniform draws."""

    def train_step(self, images, captions):
        plain = flowclip.flow_matching_loss

        def loss(*args, t, **given):
            return plain(*args, t=torch.special.ndtri(t).sigmoid(), **given)

        with mock.patch.object(flowclip, "flow_matching_loss", loss):
            return super().train_step(images, captions)


class Averages(train.TextConditionalTrainer):
    """Keeps averages of other decays beside its own, in one run. Those above 0.999 begin to differ in the twelfth epoch."""

    decays = (0.9, 0.99)

    def train_step(self, images, captions):
        if self.step == 0:
            self.others = {decay: copy.deepcopy(self.ema_model) for decay in self.decays}
        loss = super().train_step(images, captions)
        for decay, model in self.others.items():
            b = min(decay, (1 + self.step) / (10 + self.step))
            get_ema_multi_avg_fn(b)(list(model.parameters()), list(self.model.parameters()), None)
        return loss


class Mirrored(train.Batches):
    """Each image mirrored with probability 1/2, by a coin that is a function of (seed, epoch)."""

    def __iter__(self):
        rand = train.generator("cpu", self.seed, self.epoch, 2)
        for images, labels in super().__iter__():
            coin = torch.rand(len(images), 1, 1, 1, generator=rand).to(images.device) < 0.5
            yield torch.where(coin, images.flip(-1), images), labels


CASES = {
    "documented": {},
    "documented, another seed": {"seed": 1, "kind": Averages},
    "lr 3e-4 and warm-up": {"lr": 3e-4, "warmup": 500},
    "lr 5e-4 and warm-up": {"lr": 5e-4, "warmup": 500},
    "lr 1e-3 and warm-up": {"lr": 1e-3, "warmup": 500},
    "warm-up of 500 steps": {"warmup": 500},
    "logit-normal t": {"kind": LogitNormal},
    "mirrored images": {"batches": Mirrored},
    "second beta 0.95": {"betas": (0.9, 0.95)},
}


@torch.no_grad()
def held_out_loss(model, encoder, images, labels, captions, device, seed=0):
    """The mean of [FLOW-3] over uint8 images [N, C, H, W] and the captions of their labels [N], at uniform times."""
    rand, total, (Z, mask) = torch.Generator().manual_seed(seed), 0.0, flowclip.trim_context(*encoder(captions))
    for part in torch.arange(len(images)).split(100):
        x0 = flowclip.normalize_images(images[part])
        x1, t = torch.randn(x0.shape, generator=rand), torch.rand(len(x0), generator=rand)
        text = Z[labels[part]], mask[labels[part]]
        with flowclip.autocast(device):
            x0, x1, t = x0.to(device), x1.to(device), t.to(device)
            total += flowclip.flow_matching_loss(model, x0, *text, x1=x1, t=t).item() * len(part)
    return total / len(images)


def run_case(name, args, data, encoder, device):
    """Train one case, and give (its name, minutes, model, checkpoint): more than once where other averages were kept."""
    images, labels, captions = data
    torch._dynamo.reset()  # else the model of the ninth case would find its compilations used up
    options = {"lr": 1e-4, "seed": 0} | CASES[name]
    kind, batches = options.pop("kind", train.TextConditionalTrainer), options.pop("batches", train.Batches)
    betas = options.pop("betas", None)
    torch.manual_seed(options["seed"])
    _, channels, _, size = images.shape
    trainer = kind(
        flowclip.TextConditionalDiT(img_size=size, in_channels=channels),
        encoder, batches(images.to(device), labels, 64, options["seed"]), lambda labels: [captions[n] for n in labels.tolist()],
        device=device, compile=args.compile, **options,
    )  # fmt: skip
    if betas:
        trainer.optimizer.param_groups[0]["betas"] = betas
    trainer.encode_captions(captions)
    begin = time.perf_counter()
    trainer.train(args.epochs)
    minutes = (time.perf_counter() - begin) / 60
    models = {name: trainer.ema_model}
    if kind is Averages:
        models |= {f"EMA {decay:g}": model for decay, model in trainer.others.items()} | {"no EMA": trainer.model}
    for case, model in models.items():
        trainer.ema_model, path = model, args.out / f"{case.replace(' ', '-')}.pt"
        trainer.save_checkpoint(path, {"data": args.data})
        yield case, minutes, model.eval(), path


def parse_args():
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", default="cifar10", metavar="D", help="as of train.py (cifar10)")
    add("--clip-weights", default="openai", metavar="W", help="as of train.py (openai)")
    add("--epochs", type=number(int, 1), default=3, metavar="N", help="epochs a case (3)")
    add("--n", type=number(int, 2), default=500, metavar="N", help="draws that are judged, at w = 3 (500)")
    add("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="NAME", help=f"{'; '.join(CASES)} (all)")
    add("--compile", action=argparse.BooleanOptionalAction, default=False, help="torch.compile the model")
    add("--out", type=Path, default=Path("runs/ablation"), metavar="DIR", help="(runs/ablation)")
    return parser.parse_args()


def main():
    args, device = parse_args(), flowclip.get_device()
    args.out.mkdir(parents=True, exist_ok=True)
    table, same = args.out / "ablation.csv", {name: str(getattr(args, name)) for name in SAME}
    if not table.exists():
        table.write_text(",".join(COLUMNS) + "\n")
    with open(table) as file:
        done = {row["case"] for row in csv.DictReader(file) if all(row[name] == same[name] for name in SAME)}
    learn, (test, labels), captions = load_real(args.data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = flowclip.CLIPTextEncoder(pretrained=args.clip_weights, device=device)
    some = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:2000]
    for name in [name for name in args.cases if name not in done]:
        rows = []
        try:
            for case, minutes, model, path in run_case(name, args, (*learn, captions), encoder, device):
                loss = held_out_loss(model, encoder, test[some], labels[some], captions, device)
                row = Court(path, compile=args.compile).hear(args.n)
                values = {"case": case, "loss": f"{loss:.4f}", "kept": f"{row['kept']:.3f}", "frechet": f"{row['frechet']:.2f}"}
                rows.append(same | values | {"minutes": f"{minutes:.1f}"})
        except FloatingPointError as error:
            rows = [same | {"case": name, "loss": str(error)}]
        with open(table, "a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerows(rows)  # all rows of a case, or none
        for row in rows:
            print(", ".join(f"{key} {row[key]}" for key in COLUMNS[len(SAME) :] if key in row), flush=True)


if __name__ == "__main__":
    run_script(main, "--data DIR, --clip-weights untrained")
