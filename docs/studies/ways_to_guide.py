"""Other ways to guide: python docs/studies/ways_to_guide.py CHECKPOINT EARLIER [emoji]

Judged with the same captions, noises and steps: with a folder on the emoji of docs/9-emoji.md,
without one by docs/studies/judge.py, on any data of classes. w is the scale:

    everywhere   v_uncond + w (v_cond - v_uncond) at each step [CFG-1]
    middle       the same for 0.25 < t < 0.75, else v_cond: fewer passes (Kynkäänniemi et al. 2024)
    earlier      v_early + w (v_cond - v_early); v_early: the velocity that an EARLIER checkpoint of
                 the run gives for the same text (Karras et al. 2024 take a smaller model as well)
"""

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
import compose
import judge
import judge_emoji

import flowclip

WAYS = "everywhere", "middle", "earlier"


def ways(model, early, Z, mask, w):
    """{name: velocity(x, t)}; row 0 of Z and mask is the null text."""
    text = Z[1:], mask[1:]

    def everywhere(x, t):
        return flowclip.cfg_velocity(model, x, t, *text, Z[:1], mask[:1], w)

    def middle(x, t):
        return everywhere(x, t) if 0.25 < t[0] < 0.75 else model(x, t, *text)

    def earlier(x, t):
        v_early = early(x, t, *text)
        return v_early + w * (model(x, t, *text) - v_early)

    return dict(zip(WAYS, (everywhere, middle, earlier)))


class Guided(judge.Court):
    """Judges any run; what is drawn is drawn by one of the `ways`."""

    def walk(self, prompts, cfg, steps, solver, rand):
        Z, mask = (tensor.to(self.device) for tensor in self.encoder(["", *prompts]))
        noise = torch.randn(len(prompts), *self.meta["image_shape"], generator=rand)
        with torch.no_grad():
            velocity = ways(self.model, self.early, Z, mask, cfg)[self.way]
            return flowclip.integrate(velocity, noise.to(self.device), steps, solver)


def judge_classes(args):
    """Print the share of prompts that are kept, and the distance, of each way and scale."""
    court = Guided(args.checkpoint)
    court.early, _ = flowclip.load_checkpoint(args.earlier, court.device)
    print(compose.line("guided", "w", "kept", "distance"))
    for w in args.cfg:
        for court.way in WAYS:
            row = court.hear(args.n, w, args.steps)
            cells = f"{row['kept']:.1%}", f"{row['frechet']:.2f}"
            print(compose.line(court.way, f"{w:g}", *cells), flush=True)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("checkpoint", type=Path)
    add("earlier", type=Path, help="another checkpoint of the same run")
    add("folder", type=Path, nargs="?", help="that docs/studies/emoji.py wrote")
    add("--cfg", type=float, nargs="+", default=[2.0, 3.0], metavar="W", help="scales (2 3)")
    add("--n", type=int, default=200, metavar="N", help="drawings, of each kind of emoji (200)")
    add("--steps", type=int, default=20, metavar="N", help="solver steps (20)")
    return parser.parse_args()


def main():
    args = parse_args()
    if not args.folder:
        return judge_classes(args)
    court = judge_emoji.Judge(args.folder)
    model, meta = flowclip.load_checkpoint(args.checkpoint, flowclip.get_device())
    early, _ = flowclip.load_checkpoint(args.earlier, flowclip.get_device())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the tower is untrained
        encoder = flowclip.CLIPTextEncoder(meta["clip"], meta["clip_weights"])
    rand = np.random.default_rng(0)
    device = next(model.parameters()).device
    print(compose.line("captions", "guided", "w", *judge_emoji.SCORES))
    for kind, captions in court.kinds.items():
        asked = compose.choose(list(rand.permutation(captions)), args.n, rand)
        Z, mask = (tensor.to(device) for tensor in encoder(["", *asked]))
        noise = torch.randn(len(asked), *meta["image_shape"], generator=torch.manual_seed(0))
        for w in args.cfg:
            for name, velocity in ways(model, early, Z, mask, w).items():
                with torch.no_grad(), flowclip.autocast(device):
                    x = flowclip.integrate(velocity, noise.to(device), args.steps)
                drawn = flowclip.denormalize_images(x).cpu()
                shares = judge_emoji.shares(court.score(asked, drawn))
                cells = (f"{shares[s][0]:.0%}" if s in shares else "" for s in judge_emoji.SCORES)
                print(compose.line(kind, name, f"{w:g}", *cells), flush=True)


if __name__ == "__main__":
    flowclip.run_script(main)
