"""Are prompts kept, are pictures like real ones? python docs/studies/judge.py CHECKPOINT

The judge is a small CNN that learns the real training images of the run. Its score on real test
images is printed first, and the loss of the model on 2,000 of these (which a run on digits has seen
in part). Then it looks at drawn images:

- kept: which share does it give to the class of the prompt? The control has the prompts shuffled.
- Fréchet distance (Heusel et al. 2017), in the features of this CNN: how far are the drawn images
  from the real test images? The floor is the distance of as many images that it has learned from,
  or of all of them if these are fewer.

The rows are added to judge.csv in the run folder, and the CNN is kept there.
"""

import argparse
import csv
import sys
import time
import warnings
from pathlib import Path

import torch
from sklearn.model_selection import train_test_split
from torch import nn
from torchvision.datasets import CIFAR10
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).parents[2]))
import flowclip
import train


def load_real(data, size=None):
    """A run's --data -> (images, labels) to learn from, the same to be tried on, and captions.

    images uint8 [N, C, H, W], labels [N].
    """
    images, labels, captions = train.load_data(data, size)
    size = images.shape[-1]
    if data == "digits":  # the run has seen all of them; the judge keeps half to be tried on
        learn, held = train_test_split(torch.arange(len(images)), test_size=0.5, random_state=0)
        return (images[learn], labels[learn]), (images[held], labels[held]), captions
    if data == "cifar10":
        cifar = CIFAR10(root="data", train=False)
        test = torch.from_numpy(cifar.data).permute(0, 3, 1, 2)
        test = v2.functional.resize(test, [size, size], antialias=True)
        return (images, labels), (test, torch.tensor(cifar.targets)), captions
    *test, test_captions = train.load_data(str(Path(data).parent / "test"), size)
    if captions != test_captions:
        raise ValueError(f"{data} and the folder test beside it have other captions")
    return (images, labels), test, captions


class Judge(nn.Module):
    """A CNN of five layers: images [B, C, H, W] in [-1, 1] -> scores [B, classes].

    Its `features` are [B, 128].
    """

    def __init__(self, channels, classes):
        super().__init__()
        sizes = [(channels, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1)]
        layers = []
        for i, o, stride in sizes:
            layers += [nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(128, classes)

    def forward(self, x):
        return self.head(self.features(x))

    @torch.no_grad()
    def look(self, images):
        """uint8 images [N, C, H, W] -> (classes [N], features [N, 128] float64), on the CPU."""
        device = self.head.weight.device
        parts = (flowclip.normalize_images(part.to(device)) for part in images.split(500))
        features = torch.cat([self.features(part) for part in parts])
        return self.head(features).argmax(dim=1).cpu(), features.double().cpu()


def fit_judge(images, labels, classes, device, mirror, seed=0):
    """-> a Judge that has learned from images, each of them shifted and perhaps mirrored.

    It sees 3,000 batches of 128, or 100 epochs if these are fewer.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        judge, size = Judge(images.shape[1], classes).to(device).train(), images.shape[-1]
        batches = train.Batches(images, labels, min(128, len(images)), seed)
        steps = min(3000, 100 * len(batches))
        optimizer = torch.optim.AdamW(judge.parameters(), lr=5e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps)
        shift = v2.RandomCrop(size, padding=size // 8, padding_mode="edge")
        move = v2.Compose([shift, v2.RandomHorizontalFlip(0.5 if mirror else 0)])
        for step in range(steps):
            if step % len(batches) == 0:
                batches.epoch, batch = step // len(batches), iter(batches)
            x, y = next(batch)
            x = torch.stack([move(image) for image in x])  # each its own way
            loss = nn.functional.cross_entropy(judge(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        return judge.eval()


def frechet_distance(a, b):
    """Between the Gaussians of features a and b [N, D], float64.

    |mean_a - mean_b|^2 + trace(C_a + C_b - 2 (C_a C_b)^(1/2))
    """
    C_a, C_b = a.T.cov(), b.T.cov()
    root = torch.linalg.eigvals(C_a @ C_b).real.clamp(min=0).sqrt().sum()
    between = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    return float(between + C_a.trace() + C_b.trace() - 2 * root)


def shuffle(values, seed):
    return values[torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))]


@torch.no_grad()
def held_out_loss(model, encoder, images, labels, captions, device, seed=0):
    """The mean of [FLOW-3] at uniform times, of uint8 images [N, C, H, W] and their labels [N]."""
    rand, total = torch.Generator().manual_seed(seed), 0.0
    Z, mask = encoder(captions)
    for part in torch.arange(len(images)).split(100):
        x0 = flowclip.normalize_images(images[part])
        x1, t = torch.randn(x0.shape, generator=rand), torch.rand(len(x0), generator=rand)
        text = Z[labels[part]], mask[labels[part]]
        with flowclip.autocast(device):
            x0, x1, t = x0.to(device), x1.to(device), t.to(device)
            loss = flowclip.flow_matching_loss(model, x0, *text, x1=x1, t=t)
        total += loss.item() * len(part)
    return total / len(images)


class Court:
    """All that judges the run of one checkpoint: the real images, the CNN, the model."""

    def __init__(self, path, device=None, compile=False):
        self.device = torch.device(device or flowclip.get_device())
        self.model, self.meta = flowclip.load_checkpoint(path, self.device)
        if compile:
            for block in self.model.blocks:
                block.compile()
        data = flowclip.read_checkpoint(path)["training"]["run"]["data"]
        size = self.meta["image_shape"][-1]
        learn, (self.real, self.labels), self.captions = load_real(data, size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the tower is untrained
            self.encoder = flowclip.CLIPTextEncoder(
                self.meta["clip"], self.meta["clip_weights"], self.device
            )
        kept = Path(path).with_name("judge.pt")
        lesson = [data, list(learn[0].shape), self.captions]
        state = torch.load(kept, map_location="cpu", weights_only=True) if kept.exists() else {}
        if state.get("lesson") == lesson:
            self.judge = Judge(self.real.shape[1], len(self.captions)).to(self.device).eval()
            self.judge.load_state_dict(state["judge"])
        else:
            self.judge = fit_judge(*learn, len(self.captions), self.device, mirror=data != "digits")
            torch.save({"lesson": lesson, "judge": self.judge.state_dict()}, kept)
        seen, self.features = self.judge.look(self.real)
        self.accuracy = float((seen == self.labels).double().mean())
        self.learn = shuffle(learn[0], seed=0)

    def held_out_loss(self, count=2000):
        """The loss of the model on some of the real images, the same for all models."""
        some = shuffle(torch.arange(len(self.real)), 0)[:count]
        real, labels = self.real[some], self.labels[some]
        return held_out_loss(self.model, self.encoder, real, labels, self.captions, self.device)

    def draw(self, count, cfg, steps, solver, seed):
        """-> (images uint8 [count, C, H, W], the classes of their prompts), drawn 100 by 100."""
        classes, images = torch.arange(count) % len(self.captions), []
        rand = torch.Generator().manual_seed(seed)
        for part in classes.split(100):
            prompts = [self.captions[label] for label in part]
            with flowclip.autocast(self.device):
                x = self.walk(prompts, cfg, steps, solver, rand)
            images.append(flowclip.denormalize_images(x).cpu())
        return torch.cat(images), classes

    def walk(self, prompts, cfg, steps, solver, rand):
        """-> images [B, C, H, W] of B prompts, values about [-1, 1]."""
        return flowclip.sample_text_conditional(
            self.model, self.encoder, prompts, self.meta["image_shape"], steps, cfg,
            generator=rand, solver=solver,
        )  # fmt: skip

    def hear(self, count=1000, cfg=3.0, steps=50, solver="euler", seed=0):
        """-> a row of judge.csv: kept and control are shares in [0, 1]."""
        begin = time.perf_counter()
        images, classes = self.draw(count, cfg, steps, solver, seed)
        seconds = time.perf_counter() - begin
        seen, features = self.judge.look(images)
        _, learned = self.judge.look(self.learn[:count])
        return {
            "step": self.meta["step"],
            "cfg": cfg,
            "steps": steps,
            "solver": solver,
            "n": count,
            "seed": seed,
            "kept": (seen == classes).double().mean().item(),
            "control": (seen == shuffle(classes, seed)).double().mean().item(),
            "frechet": frechet_distance(features, self.features),
            "floor": frechet_distance(learned, self.features),
            "seconds": round(seconds, 1),
        }


def add_row(path, row):
    """Add {column: value} to a csv file, below a header that the first row writes."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("checkpoint", type=Path)
    add("--n", type=int, default=1000, metavar="N", help="draws (1,000)")
    add("--cfg", type=float, nargs="+", default=[3.0], metavar="W", help="guidance scales (3)")
    add("--steps", type=int, nargs="+", default=[50], metavar="N", help="solver steps (50)")
    add("--solver", choices=["euler", "heun"], default="euler", help="(euler)")
    add("--seed", type=int, default=0, metavar="N", help="of the noise (0)")
    add("--compile", action="store_true", help="torch.compile the model")
    add("--at-least", type=float, default=0, metavar="P", help="status 1 if fewer prompts are kept")
    return parser.parse_args()


def main():
    args = parse_args()
    court = Court(args.checkpoint, compile=args.compile)
    table = args.checkpoint.with_name("judge.csv")
    print(f"the judge knows {court.accuracy:.1%} of {len(court.real):,} real test images")
    some = min(2000, len(court.real))
    print(f"the loss of the model on {some:,} of them is {court.held_out_loss(some):.4f}")
    for cfg in args.cfg:
        for steps in args.steps:
            row = court.hear(args.n, cfg, steps, args.solver, args.seed)
            print(
                f"w = {cfg:g}, {steps} {args.solver} steps: "
                f"{row['kept']:.1%} of {args.n} draws are what their prompt names "
                f"(prompts shuffled {row['control']:.1%}), "
                f"Fréchet distance {row['frechet']:.2f} (floor {row['floor']:.2f}), "
                f"{row['seconds']:.0f} s",
                flush=True,
            )
            add_row(table, row)
            if row["kept"] < args.at_least:
                sys.exit(1)


if __name__ == "__main__":
    flowclip.run_script(main)
