"""The best that training can do: python docs/studies/exact.py --data digits

Of a finite set of images E[v | x_t, text] is a softmax over them ([FLOW-6]), and nothing is left to
learn. So it can be measured how low the loss can be, and what guidance does to a model without
error.
"""

import argparse
import sys
from pathlib import Path

import torch
from einops import rearrange

sys.path.insert(0, str(Path(__file__).parents[2]))
from judge import frechet_distance  # noqa: E402

import flowclip  # noqa: E402
import sample  # noqa: E402
import train  # noqa: E402


class ExactModel:
    """The velocity with the least loss on images [n, C, H, W] in [-1, 1] that have labels [n].

    A text is a row context [B, 1, captions], 1 where an image may have that caption and else 0:
    `texts(labels)` has a single 1, and `null` nothing else.
    """

    def __init__(self, images, labels):
        self.images, self.labels = images, labels
        self.captions = int(labels.max()) + 1
        self.null = torch.ones(1, 1, self.captions)

    def texts(self, labels):
        return torch.nn.functional.one_hot(labels, self.captions).float()[:, None]

    def shares(self, xt, t, context):
        """P(image | x_t, text) of each of the images -> [B, n]."""
        x, centres, t = xt.flatten(1), self.images.flatten(1), t[:, None]
        # |x_t - (1 - t) x_i|^2 but for |x_t|^2, which is the same for all images
        far = (1 - t) ** 2 * centres.square().sum(dim=1) - 2 * (1 - t) * (x @ centres.T)
        others = context[:, 0, self.labels] == 0
        return (-far / (2 * t**2)).masked_fill(others, -torch.inf).softmax(dim=-1)

    def __call__(self, xt, t, context, mask=None):
        """xt [B, C, H, W], t [B] above 0, context [B, 1, captions] -> v [B, C, H, W]."""
        mean = self.shares(xt, t, context) @ self.images.flatten(1)
        return (xt - mean.view_as(xt)) / rearrange(t, "b -> b 1 1 1")

    def draw(self, labels, cfg_scale, num_steps=50, seed=0):
        """One image a label, by the guidance and the Euler steps of flowclip -> [B, C, H, W]."""
        noise = torch.randn(
            len(labels), *self.images.shape[1:], generator=torch.Generator().manual_seed(seed)
        ).to(self.images)
        context, mask = self.texts(labels), torch.ones(len(labels), 1)

        def velocity(x, t):
            return flowclip.cfg_velocity(self, x, t, context, mask, self.null, mask[:1], cfg_scale)

        return flowclip.integrate(velocity, noise, num_steps)


def loss_of(model, x0, contexts, t=None, seed=0):
    """[FLOW-3] over images x0 [n, C, H, W], a noise and a time each, or the time t for all."""
    rand, losses = torch.Generator().manual_seed(seed), []
    for part, context in zip(x0.split(250), contexts.split(250)):
        x1 = torch.randn(part.shape, generator=rand).to(part)
        times = torch.rand(len(part), generator=rand).to(part)
        times = times if t is None else torch.full_like(times, t)
        loss = flowclip.flow_matching_loss(model, part, context, None, x1=x1, t=times)
        losses += len(part) * [loss]
    return torch.stack(losses).mean().item()


def nearest(drawn, images):
    """-> (the distance of each drawn image from the nearest of `images`, which of them it is).

    Distances are root mean squares over the pixels.
    """
    far, which = torch.cdist(drawn.flatten(1), images.flatten(1)).min(dim=1)
    return far / drawn[0].numel() ** 0.5, which


def spread(images, labels):
    """How far images are from the mean of their caption, root mean square over the pixels."""
    parts = [images[labels == label] for label in labels.unique()]
    return torch.cat([part - part.mean(dim=0) for part in parts]).square().mean().sqrt().item()


def trained_model(path):
    """The model of a checkpoint, asked as an ExactModel is."""
    model, encoder, meta = sample.load(path)
    Z, mask = encoder([*meta["captions"], ""])

    def velocity(xt, t, context, _):
        null = context.sum(dim=-1) > 1
        rows = context.argmax(dim=-1).masked_fill(null, len(Z) - 1).flatten()
        with torch.no_grad():
            return model(xt.float(), t.float(), Z[rows], mask[rows])

    return velocity


def measure_loss(exact, model, points, times=(None,)):
    """The loss of `model` on images of `exact`, with captions and without."""
    rows = torch.randint(len(exact.images), (points,), generator=torch.Generator().manual_seed(1))
    x0, texts = exact.images[rows], exact.texts(exact.labels[rows])
    for t in times:
        told, untold = (
            loss_of(model, x0, context, t) for context in (texts, exact.null.expand_as(texts))
        )
        when = "all times" if t is None else f"t = {t}"
        print(f"loss, {when}: {told:.4f} with captions, {untold:.4f} without", flush=True)


def measure_unseen(model, t=0.5):
    """The loss at one time of a model that knows every second image, on these and on the others."""
    half = ExactModel(model.images[::2], model.labels[::2])
    seen, unseen = (
        loss_of(half, model.images[n::2], model.texts(model.labels[n::2]), t) for n in (0, 1)
    )
    print(f"half of the images known, t = {t}: {seen:.4f} on these, {unseen:.4f} on the others")


def measure_copies(model, path, draws, w=1):
    """How far a trained model's draws are from the training images, and these from each other."""
    trained, encoder, meta = sample.load(path)
    labels = torch.arange(draws) % model.captions
    drawn = flowclip.sample_text_conditional(
        trained, encoder, [meta["captions"][label] for label in labels], meta["image_shape"],
        cfg_scale=w, generator=torch.Generator().manual_seed(0),
    ).to(model.images)  # fmt: skip
    apart = nearest(model.images[::2], model.images[1::2])[0].mean()
    far = nearest(drawn, model.images)[0].mean()
    print(f"its draws at w = {w}: {far:.3f} from the nearest training image (half of these are "
          f"{apart:.3f} from the others), spread {spread(drawn, labels):.3f}")  # fmt: skip


def measure_guidance(model, draws):
    """Where the paths end, and how much they differ, against w."""
    labels = torch.arange(draws) % model.captions
    halves = (model.images[n::2].flatten(1) for n in (0, 1))
    print(f"real: spread {spread(model.images, model.labels):.3f}, "
          f"distance of two halves {frechet_distance(*halves):.2f}")  # fmt: skip
    for w in (0, 1, 3, 7.5):
        drawn = model.draw(labels, w)
        far, which = nearest(drawn, model.images)
        kept = (model.labels[which] == labels).float().mean()
        distance = frechet_distance(drawn.flatten(1), model.images.flatten(1))
        print(f"w = {w}: at most {far.max():.0e} from one of {len(which.unique())} images, "
              f"{kept:.1%} of the prompt, distance {distance:.2f}, "
              f"spread {spread(drawn, labels):.3f}", flush=True)  # fmt: skip


def parse_args():
    parser = argparse.ArgumentParser(description="What the exact model of a data set does.")
    add = parser.add_argument
    add("--data", default="digits", metavar="DATA", help="as of train.py (%(default)s)")
    add("--checkpoint", metavar="PATH", help="a trained model, to be measured beside it")
    add("--points", type=int, default=100_000, metavar="N", help="of the loss (%(default)s)")
    add(
        "--draws",
        type=int,
        default=1000,
        metavar="N",
        help="images; 0: the loss alone (%(default)s)",
    )
    return parser.parse_args()


def main():
    args = parse_args()
    images, labels, _ = train.load_data(args.data)
    images = flowclip.normalize_images(images)
    if len(images) < 10_000:
        images = images.double()
    model = ExactModel(images, labels)
    times = (None, 0.3, 0.6, 0.9) if args.draws else (None,)
    print("the exact model")
    measure_loss(model, model, args.points, times)
    if args.checkpoint:
        print(args.checkpoint)
        measure_loss(model, trained_model(args.checkpoint), args.points, times)
        if args.draws:
            measure_copies(model, args.checkpoint, args.draws)
    if args.draws:
        measure_unseen(model)
        measure_guidance(model, args.draws)


if __name__ == "__main__":
    flowclip.run_script(main)
