"""Is the rate too high for the loss? python docs/studies/sharpness.py DATA CHECKPOINT ...

AdamW steps along -lr g / sqrt(v), with momentum. Where the loss is quadratic with the Hessian H,
such steps swing wider and wider along each direction in which P^-1/2 H P^-1/2 curves by more than
2 (1 + beta1) / ((1 - beta1) lr) = 38 / lr, the edge; P is diagonal and holds the sqrt(v). (Cohen et
al. 2022, Adaptive gradient methods at the edge of stability.) This holds late in a run, with H and
v at rest and without decay. lr is the rate of the last step: where it has fallen to 0, the share
says little. Printed is the largest of these curvatures divided by the edge. Lanczos' method finds
it, to 3%, in float32, for one batch of --n images and for --batches of 64, each with noises of its
own. DATA is what the run was trained on; a checkpoint is one of train.py or of collapse.py. Its raw
weights are taken, and the v of its optimizer.
"""

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).parents[2]))
import flowclip
import train


class Valley:
    """The curvature of the loss of a run, as AdamW sees it."""

    def __init__(self, checkpoint):
        meta, training = checkpoint["meta"], checkpoint["training"]
        self.model = flowclip.TextConditionalDiT(**meta["config"])
        self.model.load_state_dict(training["model"])
        self.weights = [*self.model.parameters()]
        group = training["optimizer"]["param_groups"][0]
        beta1, beta2 = group["betas"]
        self.edge = 2 * (1 + beta1) / ((1 - beta1) * group["lr"])
        states = (training["optimizer"]["state"][number] for number in group["params"])
        self.roots = [  # of P = sqrt(v) + eps
            ((state["exp_avg_sq"] / (1 - beta2 ** state["step"])).sqrt() + group["eps"]).sqrt()
            for state in states
        ]

    def curve(self, direction, batch):
        """P^-1/2 H P^-1/2 times a direction, for the mean loss of a batch."""
        step = [part / root for part, root in zip(direction, self.roots)]
        curved = [torch.zeros_like(weight) for weight in self.weights]
        count = sum(len(x0) for x0, *_ in batch)
        for x0, x1, t, context, mask in batch:
            with sdpa_kernel(SDPBackend.MATH):  # which can be differentiated twice
                loss = flowclip.flow_matching_loss(self.model, x0, context, mask, x1=x1, t=t)
            slope = torch.autograd.grad(loss, self.weights, create_graph=True)
            along = sum((part * other).sum() for part, other in zip(slope, step))
            for total, part in zip(curved, torch.autograd.grad(along, self.weights)):
                total += part * len(x0) / count
        return [part / root for part, root in zip(curved, self.roots)]

    def sharpness(self, batch):
        """The largest eigenvalue of P^-1/2 H P^-1/2, divided by the edge."""
        sizes = [weight.numel() for weight in self.weights]

        def curve(flat):
            parts = torch.from_numpy(flat).float().split(sizes)
            direction = [part.view_as(weight) for part, weight in zip(parts, self.weights)]
            return torch.cat([part.flatten() for part in self.curve(direction, batch)]).numpy()

        operator = LinearOperator((sum(sizes),) * 2, curve, dtype=np.float32)
        begin = np.random.default_rng(0).standard_normal(sum(sizes), np.float32)
        found = eigsh(operator, 1, which="LA", v0=begin, tol=0.03, return_eigenvectors=False)
        return found.item() / self.edge


def draw_batch(data, encoder, n, seed):
    """n images with captions (one in ten is dropped), noises and times, in parts of at most 64."""
    images, labels, captions = data
    random = torch.Generator().manual_seed(seed)
    some = torch.randint(len(images), (n,), generator=random)
    x0 = flowclip.normalize_images(images[some])
    x1 = torch.randn(x0.shape, generator=random)
    t, coin = torch.rand(2, n, generator=random)
    asked = [captions[label] if keep else "" for label, keep in zip(labels[some], coin >= 0.1)]
    Z, mask = flowclip.trim_context(*encoder(asked))
    return [*zip(*(tensor.split(64) for tensor in (x0, x1, t, Z, mask)))]


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("data", help="what was trained on: a folder, or a name that train.py knows")
    add("checkpoints", nargs="+", metavar="CHECKPOINT")
    add("--n", type=int, default=512, metavar="N", help="images of the large batch (512)")
    add("--batches", type=int, default=6, metavar="N", help="batches of 64 (6)")
    return parser.parse_args()


def main():
    args = parse_args()
    data = train.load_data(args.data)
    for path in args.checkpoints:
        checkpoint = flowclip.read_checkpoint(path)
        meta = checkpoint["meta"]
        encoder = flowclip.CLIPTextEncoder(meta["clip"], meta["clip_weights"])
        valley = Valley(checkpoint)
        found = [
            valley.sharpness(draw_batch(data, encoder, n, seed))
            for seed, n in enumerate([args.n] + [64] * args.batches)
        ]
        said = " ".join(f"{number:.2f}" for number in found[1:])
        print(
            f"{path}: step {meta['step']:,}, {found[0]:.2f} of the edge", f"of 64: {said}", sep="; "
        )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    flowclip.run_script(main)
