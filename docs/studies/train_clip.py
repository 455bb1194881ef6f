"""A CLIP that means something, without a download: python docs/studies/train_clip.py shapes

Trains a small text tower of open_clip and a small convolutional network with flowclip.clip_loss on
the pictures of docs/studies/draw_shapes.py, from their captions alone, and writes the tower. Then

    python train.py --data shapes --clip ViT-S-32-alt --clip-weights shapes-clip.pt ...

reads it. Prints cosines of pooled vectors before and after, and how many pictures find their
caption among 100, or among all of its kind where there are fewer.
"""

import argparse
import math
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.transformer import TextTransformer
from torch import nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2]))
import compose
import draw_shapes

import flowclip
import train

BESIDE = "a red circle", "a red circle left of a blue square"
OTHERS = (  # what the two are compared with: what they share, and what they do not
    ("a red square", "a blue circle", "a blue square"),
    ("a red circle above a blue square", "a red circle left of a blue circle",
     "a blue square left of a red circle", "a yellow triangle above a cyan square"),
)  # fmt: skip


class ImageTower(nn.Sequential):
    """Images [B, 3, S, S] -> vectors [B, D]; places are kept, as captions name them."""

    def __init__(self, size, embed_dim, width=64):
        sizes = (3, width, width, 2 * width, 4 * width)
        convolutions = [
            layer
            for before, after, stride in zip(sizes, sizes[1:], (1, 2, 2, 2))
            for layer in (nn.Conv2d(before, after, 3, stride, 1), nn.GroupNorm(8, after), nn.GELU())
        ]
        places = math.ceil(size / 8) ** 2
        super().__init__(*convolutions, nn.Flatten(), nn.Linear(places * sizes[-1], embed_dim))


class Pairs(nn.Module):
    """An image tower, a text tower that learns, and the temperature, which is learned too."""

    def __init__(self, clip, captions, size):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is untrained
            encoder = flowclip.CLIPTextEncoder(clip, "untrained")
        self.tower = encoder.tower.requires_grad_(True)
        ids = encoder.tokenize(captions)
        ids, _ = flowclip.trim_context(ids, ids > 0)
        self.tower.attn_mask = self.tower.attn_mask[: ids.shape[1], : ids.shape[1]]
        self.ids = dict(zip(captions, ids))
        config = open_clip.get_model_config(clip)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the projection that open_clip would begin with
            whole = TextTransformer(**config["text_cfg"], output_dim=config["embed_dim"])
        self.text_projection = whole.text_projection
        self.image_tower = ImageTower(size, config["embed_dim"])
        self.log_temperature = nn.Parameter(torch.tensor(math.log(0.07)))

    def text_vectors(self, captions):
        """B captions -> vectors [B, D], projected from Z at the EOS token."""
        pooled = self.tower(torch.stack([self.ids[caption] for caption in captions]))
        return pooled @ self.text_projection

    def forward(self, images, captions):
        """images [B, 3, S, S] and their captions -> the loss."""
        vectors = self.image_tower(images), self.text_vectors(captions)
        return flowclip.clip_loss(*vectors, self.log_temperature.exp())


def batches(labels, count, batch_size, seed):
    """-> rows of images, each of another caption: else a pair would have two right answers."""
    rand = np.random.default_rng(seed)
    rows = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
    for _ in range(count):
        chosen = rand.permutation(len(rows))[:batch_size]
        yield np.array([rand.choice(rows[label]) for label in chosen])


def fit(pairs, images, labels, captions, steps, batch_size=128, lr=1e-3, warmup=100, seed=0):
    """AdamW; the rate rises for `warmup` steps, then falls to zero by a cosine."""
    optimizer = torch.optim.AdamW(pairs.parameters(), lr=lr, weight_decay=0.0, fused=True)
    bar = tqdm(batches(labels.numpy(), steps, batch_size, seed), "clip", steps, disable=None)
    for step, rows in enumerate(bar):
        rate = min((step + 1) / warmup, (1 + math.cos(math.pi * step / steps)) / 2)
        optimizer.param_groups[0]["lr"] = lr * rate
        with flowclip.autocast("cpu"):
            loss = pairs(
                flowclip.normalize_images(images[rows]), [captions[k] for k in labels[rows]]
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 100 == 0:
            temperature = pairs.log_temperature.exp()
            print(f"step {step + 1}: loss {loss:.3f}, temperature {temperature:.3f}", flush=True)


@torch.no_grad()
def found(pairs, captions, size, rand, among=100, rounds=10):
    """The share of new pictures, one for each of `among` captions, nearest to their own caption."""
    hits = []
    for _ in range(rounds):
        asked = list(rand.permutation(captions)[:among])
        drawn = np.stack([draw_shapes.draw_caption(caption, size, rand) for caption in asked])
        images = flowclip.normalize_images(torch.from_numpy(drawn).permute(0, 3, 1, 2))
        image, text = pairs.image_tower(images), pairs.text_vectors(asked)
        nearest = (nn.functional.normalize(image) @ nn.functional.normalize(text).T).argmax(dim=1)
        hits += (nearest == torch.arange(len(asked))).tolist()
    return float(np.mean(hits))


def cosines(encoder):
    """-> {(caption, other): cosine of their pooled vectors}."""
    table = {}
    for caption, others in zip(BESIDE, OTHERS):
        _, pooled = encoder.encode([caption, *others], return_pooled=True)
        near = nn.functional.cosine_similarity(pooled[:1], pooled[1:])
        table |= {(caption, other): float(value) for other, value in zip(others, near)}
    return table


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("data", type=Path, help="a folder that docs/studies/draw_shapes.py wrote")
    add("--clip", default="ViT-S-32-alt", metavar="NAME", help="a model of open_clip")
    add("--steps", type=int, default=1000, metavar="N", help="of 128 pairs each (1,000)")
    add("--seed", type=int, default=0, metavar="N", help="of the images' tower and the order (0)")
    add("--out", type=Path, default=Path("shapes-clip.pt"), metavar="PATH", help="of the weights")
    return parser.parse_args()


def main():
    args, begin = parse_args(), time.perf_counter()
    images, labels, captions = train.load_data(str(args.data))
    kinds, size = draw_shapes.split_captions(), images.shape[-1]
    torch.manual_seed(args.seed)
    pairs = Pairs(args.clip, sorted({*captions, *sum(kinds.values(), [])}), size)
    before = cosines(flowclip.CLIPTextEncoder(args.clip, "untrained"))
    fit(pairs, images, labels, captions, args.steps, seed=args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(pairs.tower.state_dict(), args.out)
    print(f"{args.out}: {args.steps:,} steps in {time.perf_counter() - begin:.0f} s\n")

    after = cosines(flowclip.CLIPTextEncoder(args.clip, args.out))
    print(compose.line("caption", "other", "cosine before", "after"))
    print(compose.line(*["---"] * 4))
    for (caption, other), value in before.items():
        print(compose.line(caption, other, f"{value:.2f}", f"{after[caption, other]:.2f}"))
    rand = np.random.default_rng(args.seed)
    pairs.eval()
    print("\n" + compose.line("new pictures of", "captions", "find their own"))
    print(compose.line(*["---"] * 3))
    for kind, known in kinds.items():
        share = found(pairs, known, size, rand)
        print(compose.line(kind, str(min(100, len(known))), f"{share:.1%}"))


if __name__ == "__main__":
    flowclip.run_script(main)
