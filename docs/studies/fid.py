"""The distance that others publish: python docs/studies/fid.py CHECKPOINT --cfg 1 1.5 3

FID (Heusel et al. 2017) is the Fréchet distance of drawn images from the training images, in the
2,048 features of one Inception network that everybody uses. Its weights are downloaded once. Needs
torchmetrics and torch-fidelity. Published figures are mostly of 50,000 draws; fewer give more.
"""

import argparse
import sys
import warnings
from pathlib import Path

import torch
from judge import add_row
from torchmetrics.image.fid import FrechetInceptionDistance
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2]))
import flowclip
import sample
import train
from flowclip import UserError


def make_metric(network=2048):
    """-> torchmetrics' FID of uint8 images; network: so many features of Inception, or a module."""
    try:
        metric = FrechetInceptionDistance(network, reset_real_features=False)
        return metric.to(flowclip.get_device())
    except Exception as error:
        raise UserError(f"the Inception network of FID could not be loaded: {error}") from None


def see(metric, images, real):
    """Show it uint8 images [N, C, H, W]; a gray image is red, green and blue alike."""
    for part in images.split(250):
        metric.update(part.expand(-1, 3, -1, -1).to(flowclip.get_device()), real)


@torch.inference_mode()
def draw(model, encoder, meta, captions, cfg, steps, seed):
    """The uint8 images [N, C, H, W] of so many captions, 250 at a time."""
    generator = torch.Generator().manual_seed(seed)
    for start in tqdm(range(0, len(captions), 250), f"w = {cfg:g}", leave=False):
        with flowclip.autocast(flowclip.get_device()):
            x = flowclip.sample_text_conditional(
                model, encoder, captions[start : start + 250], meta["image_shape"], steps, cfg,
                generator=generator, progress=False,
            )  # fmt: skip
        yield flowclip.denormalize_images(x)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("checkpoint", type=Path)
    add("--n", type=int, default=10_000, metavar="N", help="draws (10,000)")
    add("--cfg", type=float, nargs="+", default=[1.0], metavar="W", help="guidance scales (1)")
    add("--steps", type=int, default=50, metavar="N", help="Euler steps (50)")
    add("--seed", type=int, default=0, metavar="N", help="of the noise (0)")
    return parser.parse_args()


def main():
    args = parse_args()
    metric = make_metric()
    run = flowclip.read_checkpoint(args.checkpoint)["training"]["run"]
    images, labels, captions = train.load_data(run["data"], run["img_size"])
    see(metric, images, real=True)
    model, encoder, meta = sample.load(args.checkpoint)
    # as often as in training: the labels of images in a fixed order, again and again
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(args.seed))
    asked = [captions[labels[order[n % len(order)]]] for n in range(args.n)]
    for cfg in args.cfg:
        metric.reset()
        for part in draw(model, encoder, meta, asked, cfg, args.steps, args.seed):
            see(metric, part, real=False)
        distance = metric.compute().item()
        print(f"w = {cfg:g}, {args.steps} Euler steps: FID {distance:.2f} of {args.n:,} draws")
        row = {"step": meta["step"], "cfg": cfg, "n": args.n, "steps": args.steps, "fid": distance}
        add_row(args.checkpoint.with_name("fid.csv"), row)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    flowclip.run_script(main)
