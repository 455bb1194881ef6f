"""Train a text-to-image model: python train.py --demo, or python train.py --epochs 30. The mathematics is in flowclip.py."""

import argparse
import copy
import itertools
import math
import operator
import os
import shlex
import signal
import socket
import sys
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch
import torchvision
from einops import rearrange
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm
from torch.nn.utils.rnn import pad_sequence
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torchvision.transforms import v2
from tqdm import tqdm

import flowclip
from sample import Parser, can_compile, check_place, compile_blocks, number, run_script, save_picture

DEMO = {
    "data": "digits", "clip_weights": "untrained", "out": Path("runs/demo"), "epochs": 25, "lr": 1e-3, "warmup": 100,
    "ema": 0.99, "embed_dim": 128, "depth": 4, "heads": 4, "patch_size": 2,
}  # fmt: skip
PROGRESS = ("step", "epoch", "batch", "losses", "epoch_loss", "recent", "rows")  # of a trainer


# ---- Data: uint8 images, a label each, and each label's caption ----
def load_data(name, img_size=None):
    """-> images uint8 [N, C, H, W], labels int64 [N], captions (one a label). `name`: cifar10, digits, or a folder."""
    if name == "cifar10":
        socket.setdefaulttimeout(20)  # seconds: torchvision's download has no limit of its own
        try:
            cifar = torchvision.datasets.CIFAR10(root="data", download=True)
        except (OSError, RuntimeError) as error:
            raise ConnectionError(f"could not download CIFAR-10 into data/: {' '.join(str(error).split())[:150]}") from None
        images, labels = rearrange(torch.from_numpy(cifar.data), "n h w c -> n c h w").contiguous(), cifar.targets
        captions = flowclip.make_cifar10_captions(range(10))
    elif name == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()  # 1,797 handwritten digits, 8x8, values 0 to 16
        images, labels = torch.from_numpy(digits.images * 255 / 16).round().to(torch.uint8)[:, None], digits.target
        names = ["a zero", "a one", "a two", "a three", "a four", "a five", "a six", "a seven", "an eight", "a nine"]
        captions = [f"a photo of {name}" for name in names]  # English says "a one", whatever its first letter
    elif name and Path(name).is_dir():
        return load_folder(name, img_size)
    else:
        raise ValueError(f"--data {name}: neither cifar10, digits, nor a folder that exists")
    if img_size:
        images = v2.functional.resize(images, [img_size, img_size], antialias=True)
    return images, torch.as_tensor(labels, dtype=torch.long), captions


def read_image(path, size=None):
    """-> a PIL image in RGB, cropped about its centre and resized to `size` x `size`; ValueError, which names it, if broken."""
    try:
        image = ImageOps.exif_transpose(Image.open(path))  # refuses what would unpack to more than 179 million pixels
        if image.mode == "F":
            raise ValueError("its pixels are floating point numbers of an unknown scale")
        if image.mode.startswith("I"):  # 16 bits a pixel
            image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return ImageOps.fit(image.convert("RGB"), (size, size)) if size else image.convert("RGB")
    except Exception as error:
        raise ValueError(f"{path} is not an image that can be read: {' '.join(str(error).split())[:150]}") from None


def load_folder(name, img_size=None):
    """One sub-folder of images a class, at any depth, decoded side by side."""
    for folder in Path(name).iterdir():
        if folder.is_symlink() and Path(name).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"--data {name}: {folder} is a link that leads back, expected no loop of links")
    known = {extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    paths = sorted(path for path in Path(name).glob("*/**/*") if path.suffix.lower() in known and path.is_file())
    if not paths:
        raise ValueError(f"--data {name}: no image is there, expected a sub-folder of images a class")
    captions = [flowclip.caption_of_file(path) for path in paths]
    label = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    size = img_size or min(read_image(paths[0]).size)  # the short side of the first image
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    with ThreadPool() as pool:
        decoded = pool.imap(lambda path: read_image(path, size), paths, chunksize=64)
        for i, image in enumerate(tqdm(decoded, f"reading {name}", len(paths), leave=False, disable=None)):
            images[i] = v2.functional.pil_to_tensor(image)
    return images, torch.tensor([label[caption] for caption in captions]), list(label)


def generator(device, *key):
    """Random numbers that are a function of a key such as (seed, step): a resumed run draws what it would have drawn."""
    return torch.Generator(device).manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))  # [TRAIN-4]


class Batches:
    """Shuffled batches (images in [-1, 1], labels) of uint8 images that stay on their device; the last part is dropped."""
    def __init__(self, images, labels, batch_size, seed=0):
        if not 0 < batch_size <= len(images):
            raise ValueError(f"--batch-size is {batch_size}, expected 1 to {len(images)}, the number of images")
        self.images, self.labels, self.batch_size, self.seed, self.epoch = images, labels, batch_size, seed, 0

    def __len__(self):
        return len(self.images) // self.batch_size

    def __iter__(self):
        order = torch.randperm(len(self.images), generator=generator("cpu", self.seed, self.epoch, 0))  # [TRAIN-4]
        for rows in order.split(self.batch_size)[: len(self)]:
            on_device = rows.to(self.images.device, non_blocking=True)  # no host sync
            yield flowclip.normalize_images(self.images[on_device]), self.labels[rows]


# ---- The trainer ----
class TextConditionalTrainer:
    """AdamW on the flow-matching loss, with null-text dropout and a moving average (EMA) of the weights; docs/6-objective.md.
    dataloader: any iterable of (images [B, C, H, W] in [-1, 1], labels); caption_fn(labels) -> a list of B captions. Where
    torch.distributed runs, each process takes its part of the same B, which the number of processes must divide."""
    def __init__(
        self, model, text_encoder, dataloader, caption_fn, lr=1e-4, weight_decay=0.01, text_drop_prob=0.1, device=None, *,
        ema=0.999, warmup=0, precision="auto", compile=False, seed=0, metrics=None,
    ):  # fmt: skip
        self.device = torch.device(device or flowclip.get_device())
        self.model, self.text_encoder = model.to(self.device), text_encoder.to(self.device)
        self.ema_model = copy.deepcopy(model).eval().requires_grad_(False)
        joined = distributed.is_initialized()
        self.rank, self.world = (distributed.get_rank(), distributed.get_world_size()) if joined else (0, 1)
        self.forward = DistributedDataParallel(self.model) if self.world > 1 else self.model
        if compile:
            compile_blocks(self.model)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
        self.dataloader, self.caption_fn, self.text_drop_prob = dataloader, caption_fn, text_drop_prob
        self.lr, self.ema, self.warmup, self.precision, self.seed, self.metrics = lr, ema, warmup, precision, seed, metrics
        self.step, self.epoch, self.batch, self.losses = 0, 0, 0, []  # batch: how many of this epoch are done
        self.epoch_loss = torch.zeros((), device=self.device)  # the sum stays on the device: no host sync a step
        self.recent, self.rows = [], []  # (loss, images, seconds) of each step since the last row of metrics.csv; the rows
        self.signal, self.stop = 0, 0  # the number of a signal, when it comes, and when the run ends for it
        self.texts = {}  # caption -> Z of its real tokens [length, D]; "" is the null text
        self.encode_captions([""])

    def encode_captions(self, captions):
        """Each distinct caption meets CLIP once, and only its real tokens are kept. A bar where there is a terminal."""
        new = list(dict.fromkeys(caption for caption in captions if caption not in self.texts))
        for i in tqdm(range(0, len(new), 256), "encoding captions", leave=False, disable=len(new) <= 256 or self.rank or None):
            part = new[i : i + 256]
            self.texts |= {caption: Z[mask] for caption, Z, mask in zip(part, *self.text_encoder(part))}  # [TRAIN-3]

    def context_of(self, captions):
        """-> context [B, M, D], mask [B, M], M the longest caption, and the null text as [1, M, D] and [1, M]."""
        self.encode_captions(captions)
        place = {caption: row for row, caption in enumerate(dict.fromkeys([*captions, ""]))}
        texts = [self.texts[caption] for caption in place]  # each distinct text once
        columns = [place[caption] for caption in [*captions, ""]], [len(text) for text in texts]
        rows, lengths = (torch.tensor(column).to(self.device, non_blocking=True) for column in columns)
        Z = pad_sequence(texts, batch_first=True)[rows]
        mask = torch.arange(Z.shape[1], device=self.device) < lengths[rows, None]
        return Z[:-1], mask[:-1], Z[-1:], mask[-1:]

    def learning_rate(self, step):
        return self.lr * min(1, (step + 1) / max(1, self.warmup))  # [TRAIN-5]

    def train_step(self, images, captions):
        """One step of the optimiser and of the EMA -> the loss, still on the device."""
        rand = generator(self.device, self.seed, self.step, 1)  # [TRAIN-4] drawn for all B, whoever takes them
        x1 = torch.randn(images.shape, generator=rand, device=self.device)
        t, coin = torch.rand(2, len(images), generator=rand, device=self.device)
        mine = slice(self.rank * len(images) // self.world, (self.rank + 1) * len(images) // self.world)
        images, captions, x1, t, coin = images[mine].to(self.device), captions[mine], x1[mine], t[mine], coin[mine]
        context, mask, *null = self.context_of(captions)
        context, mask = flowclip.drop_text(context, mask, *null, coin < self.text_drop_prob)  # [TRAIN-2] one coin a sample
        with flowclip.autocast(self.device, self.precision):
            loss = flowclip.flow_matching_loss(self.forward, images, context, mask, x1=x1, t=t)
        self.optimizer.param_groups[0]["lr"] = self.learning_rate(self.step)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()  # [TRAIN-1]
        self.step += 1
        decay = min(self.ema, (1 + self.step) / (10 + self.step))  # [TRAIN-6] no longer a memory than the run so far
        get_ema_multi_avg_fn(decay)(list(self.ema_model.parameters()), list(self.model.parameters()), None)
        loss = loss.detach() / self.world
        if self.world > 1:
            distributed.all_reduce(loss)
        return loss

    def train(self, num_epochs, max_steps=math.inf):
        """Train for `num_epochs` more epochs, or until step `max_steps` -> losses, one mean loss for each epoch so far."""
        self.model.train()
        for _ in range(num_epochs):
            if hasattr(self.dataloader, "epoch"):
                self.dataloader.epoch = self.epoch
            size = operator.length_hint(self.dataloader) or None
            batches, clock = itertools.islice(self.dataloader, self.batch, None), time.perf_counter()
            bar = tqdm(batches, f"epoch {self.epoch + 1}", size, initial=self.batch, leave=False, disable=self.rank or None)
            for images, labels in bar:
                if self.step >= max_steps or self.stopped():
                    return self.losses
                loss = self.train_step(images, self.caption_fn(labels))
                self.epoch_loss, self.batch = self.epoch_loss + loss, self.batch + 1
                self.recent.append((loss, len(images), time.perf_counter() - clock))
                clock = time.perf_counter()
                if self.step % 10 == 0:
                    bar.set_postfix_str(self.log())
            if self.batch == 0:
                raise ValueError("the dataloader gave no batch")
            self.losses.append(self.epoch_loss.item() / self.batch)
            self.epoch, self.batch, self.epoch_loss = self.epoch + 1, 0, torch.zeros_like(self.epoch_loss)
        return self.losses

    def stopped(self):
        """The number of the signal that ends the run, or 0; several processes agree on it, every 10 steps."""
        if self.world == 1:
            self.stop = self.signal
        elif self.step % 10 == 0:
            stop = torch.tensor(self.signal, device=self.device)
            distributed.all_reduce(stop, distributed.ReduceOp.MAX)
            self.stop = stop.item()
        return self.stop

    def check_finite(self):
        """FloatingPointError where a loss since the last row of metrics.csv, or a weight, is not finite."""
        losses = torch.stack([loss for loss, *_ in self.recent]).tolist() if self.recent else []  # one host sync
        bad = [step for step, loss in enumerate(losses, self.step - len(losses) + 1) if not math.isfinite(loss)]
        if not bad and not get_total_norm(self.model.parameters()).isfinite():
            bad = [self.step]
        if bad:
            rate = self.learning_rate(bad[0] - 1)
            raise FloatingPointError(f"step {bad[0]} is not finite at learning rate {rate:g}; try a lower --lr")

    def log(self):
        """Add a row to metrics.csv over the steps since the last row -> the same in words."""
        self.check_finite()
        if not self.recent:
            return ""
        losses, images, seconds = zip(*self.recent)
        loss, rate = float(sum(losses) / len(losses)), sum(images) / max(sum(seconds), 1e-9)
        self.rows.append(f"{self.step},{self.epoch + (self.batch > 0)},{loss:.6f},{rate:.1f}\n")
        if self.metrics:
            with open(self.metrics, "a") as file:
                file.write(self.rows[-1])
        self.recent = []
        return f"loss {loss:.4f}, {rate:,.0f} images/s"

    def save_checkpoint(self, path, run=None):
        """Write what sampling needs (EMA weights, where the text vectors came from) and what resume() needs."""  # [TRAIN-7]
        self.check_finite()  # else the last good one stays
        meta = {
            "config": self.model.config, "image_shape": list(self.model.image_shape), "captions": [*map(str, self.texts)][1:],
            "clip": self.text_encoder.model_name, "clip_weights": self.text_encoder.pretrained,
            "clip_null": self.texts[""][-1].tolist(), "epoch": self.epoch, "step": self.step, "losses": self.losses,
        }  # fmt: skip
        training = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "run": run or {}}
        training |= {name: getattr(self, name) for name in PROGRESS}
        if self.rank == 0:
            flowclip.save_checkpoint(path, self.ema_model, meta, training)
        if self.world > 1:
            distributed.barrier()  # a process that ends makes torchrun end the others, too

    def resume(self, path, run=None):
        """Go on where save_checkpoint stopped, also inside an epoch. `run`: settings that must be the same as then."""
        ema_model = flowclip.load_checkpoint(path, self.device)[0]
        training = torch.load(path, map_location=self.device, weights_only=True)["training"]
        if training is None:
            raise ValueError(f"--resume: {path} holds only what sampling needs")
        for name, now in (run or {}).items():
            then = training["run"].get(name)
            if now != then:
                raise ValueError(f"--resume: {path} was trained with {name} {then!r:.80}, and now it is {now!r:.80}")
        self.model.load_state_dict(training["model"])
        self.ema_model.load_state_dict(ema_model.state_dict())
        self.optimizer.load_state_dict(training["optimizer"])
        for name in PROGRESS:
            setattr(self, name, training[name])


# ---- The run ----
def plot_losses(path, rows, losses, steps_an_epoch):
    """loss.png: every row of metrics.csv, and the mean of each epoch at its end."""
    step, _, loss, _ = np.loadtxt(rows, delimiter=",", ndmin=2, unpack=True)
    figure = Figure(figsize=(7, 4), dpi=110, layout="tight")
    axes = figure.subplots()
    axes.plot(step, loss, color="0.75", label="mean of 10 steps")
    axes.plot(steps_an_epoch * np.arange(1, len(losses) + 1), losses, "o-", markersize=4, label="mean of an epoch")
    axes.set(xlabel="step", ylabel="flow-matching loss", ylim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(path)


def draw_samples(path, trainer, captions):
    """samples.png: one image a caption (of many: at most 20, spread over the list) at w = 3, from the EMA weights."""
    shown, rand = captions[:: -(-len(captions) // 20)], torch.Generator().manual_seed(trainer.seed)
    model = trainer.ema_model
    with flowclip.autocast(trainer.device, trainer.precision):
        x = flowclip.sample_text_conditional(model, trainer.text_encoder, shown, model.image_shape, cfg_scale=3, generator=rand)
    save_picture(path, list(flowclip.denormalize_images(x)), min(5, len(shown)), titles=shown)


def parse_args():
    parser = Parser(description="Train a text-to-image model. In brackets: the default.")
    add, count, size = parser.add_argument, number(int, 1, 10**9), number(int, 1, 4096)
    add("--demo", action="store_true", help="a preset: real digits, a small model, no download, under two minutes")
    add("--data", default="cifar10", metavar="D", help="cifar10, digits, or DIR: a sub-folder of images a class (%(default)s)")
    add("--clip", default="ViT-B-32-quickgelu", metavar="NAME", help="CLIP model, an open_clip name (%(default)s)")
    add("--clip-weights", default="openai", metavar="W", help="openai, a PATH, or untrained (%(default)s)")
    add("--epochs", type=count, default=30, metavar="N", help="passes over the data (%(default)s)")
    add("--batch-size", type=count, default=64, metavar="N", help="images a step (%(default)s)")
    add("--lr", type=number(float, 1e-12, 10), default=1e-4, metavar="X", help="learning rate of AdamW (%(default)s)")
    add("--warmup", type=number(int, 0, 10**9), default=0, metavar="N", help="steps in which the rate rises (%(default)s)")
    add("--weight-decay", type=number(float, 0, 10), default=0.01, metavar="X", help="of AdamW (%(default)s)")
    add("--text-drop", type=number(float, 0, 1), default=0.1, metavar="P", help="share of null-text captions (%(default)s)")
    add("--ema", type=number(float, 0, 1), default=0.999, metavar="X", help="decay of the weights sampled from (%(default)s)")
    add("--embed-dim", type=size, default=256, metavar="N", help="width of the model (%(default)s)")
    add("--depth", type=size, default=6, metavar="N", help="blocks (%(default)s)")
    add("--heads", type=size, default=8, metavar="N", help="attention heads a block (%(default)s)")
    add("--patch-size", type=size, default=4, metavar="N", help="pixels a side (%(default)s)")
    add("--img-size", type=size, metavar="N", help="pixels a side (as the data are)")
    add("--seed", type=number(int, 0, 2**63 - 1), default=0, metavar="N", help="of weights, order, noise, drops (%(default)s)")
    add("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="auto: bf16 on a GPU or a CPU that has it (auto)")
    add("--device", choices=["auto", "cuda", "mps", "cpu"], default="auto", help="auto: the best at hand (auto)")
    add("--compile", action=argparse.BooleanOptionalAction, help="torch.compile the model (on a GPU)")
    add("--out", type=Path, metavar="DIR", help="run folder (runs/ and the name of the data)")
    either = parser.add_mutually_exclusive_group().add_argument
    either("--resume", action="store_true", help="go on from the checkpoint in the run folder, if there is one")
    either("--overwrite", action="store_true", help="start anew; an old checkpoint becomes checkpoint.old.pt")
    add("--max-steps", type=count, default=math.inf, metavar="N", help="stop after step N (never)")
    add("--save-every", type=count, default=math.inf, metavar="N", help="steps between checkpoints (each epoch)")
    add("--sample-every", type=count, default=math.inf, metavar="N", help="epochs between samples.png (only at the end)")
    if parser.parse_known_args()[0].demo:
        parser.set_defaults(**DEMO)  # what the command line says still wins
    args = parser.parse_args()
    if args.batch_size % (processes := int(os.environ.get("WORLD_SIZE", 1))):
        raise ValueError(f"--batch-size is {args.batch_size}, expected a multiple of the {processes} processes")
    args.out = args.out or Path("runs") / Path(args.data).resolve().name
    check_place(args.out / "checkpoint.pt")
    if not {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.get(args.device, True):
        raise ValueError(f"--device {args.device}: there is none here; --device auto takes what there is")
    return args


def main():
    args, start = parse_args(), time.perf_counter()
    device = flowclip.get_device() if args.device == "auto" else torch.device(args.device)
    if args.compile is None:
        args.compile = device.type == "cuda" and can_compile(device)
    joined = "LOCAL_RANK" in os.environ  # under torchrun
    rank = int(os.environ["RANK"]) if joined else 0
    if joined:
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        distributed.init_process_group()
    if rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 the first process speaks
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.exists() and not (args.resume or args.overwrite):
        raise ValueError(f"{checkpoint} exists: --resume goes on from it, --overwrite starts anew, --out DIR goes elsewhere")
    if rank:
        distributed.barrier()  # the first process downloads, into the folder that all share
    images, labels, captions = load_data(args.data, args.img_size)
    if joined and rank == 0:
        distributed.barrier()
    count, channels, _, size = images.shape
    print(f"data: {args.data}, {count:,} images {channels}x{size}x{size}, {len(captions)} captions like {captions[0]!r}")
    encoder = flowclip.CLIPTextEncoder(args.clip, args.clip_weights, device)
    print(f"text: {args.clip}, weights {args.clip_weights!r}")
    torch.manual_seed(args.seed)
    shape = {"img_size": size, "patch_size": args.patch_size, "in_channels": channels, "embed_dim": args.embed_dim}
    model = flowclip.TextConditionalDiT(**shape, depth=args.depth, num_heads=args.heads, context_dim=encoder.embed_dim)
    batches = Batches(images.to(device), labels, args.batch_size, args.seed)
    trainer = TextConditionalTrainer(
        model, encoder, batches, lambda labels: [captions[label] for label in labels.tolist()],
        args.lr, args.weight_decay, args.text_drop, device, ema=args.ema, warmup=args.warmup,
        precision=args.precision, compile=args.compile, seed=args.seed,
    )  # fmt: skip
    trainer.encode_captions(captions)
    fixed = ("data", "clip", "clip_weights", "batch_size", "lr", "warmup", "weight_decay", "text_drop", "ema", "seed")
    run = {name: getattr(args, name) for name in fixed} | model.config | {"images": count, "captions": captions}
    if args.resume and checkpoint.exists():
        trainer.resume(checkpoint, run)
    if trainer.rank == 0:
        args.out.mkdir(parents=True, exist_ok=True)
        if args.overwrite and checkpoint.exists():
            checkpoint.replace(args.out / "checkpoint.old.pt")
        trainer.metrics = args.out / "metrics.csv"
        trainer.metrics.write_text("".join(["step,epoch,loss,images_per_second\n", *trainer.rows]))
    with flowclip.autocast(device, args.precision):
        precision = "bf16" if torch.is_autocast_enabled(device.type) else "fp32"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"model: {parameters:,} parameters, {device}, {precision}, torch {torch.__version__}; {trainer.step} steps are done")

    def on_signal(action):
        for which in (signal.SIGINT, signal.SIGTERM):
            signal.signal(which, action)

    def stop(which, _):
        trainer.signal = which
        on_signal(signal.SIG_DFL)  # a second one stops at once

    on_signal(stop)
    while trainer.epoch < args.epochs and trainer.step < args.max_steps:
        epoch = trainer.epoch
        trainer.train(1, min(args.max_steps, args.save_every * (trainer.step // args.save_every + 1)))
        trainer.save_checkpoint(checkpoint, run)
        if trainer.epoch > epoch:
            seconds = time.perf_counter() - start
            print(f"epoch {trainer.epoch}/{args.epochs}: mean loss {trainer.losses[-1]:.4f}, {seconds:.0f} s", flush=True)
            if trainer.epoch % args.sample_every == 0 and trainer.rank == 0:
                draw_samples(args.out / "samples.png", trainer, captions)
        if trainer.stop:
            print(f"stopped after step {trainer.step}; {checkpoint} is written, and --resume goes on from it")
            sys.exit(128 + trainer.stop)
    on_signal(signal.SIG_DFL)
    trainer.log()
    if trainer.rank:
        return
    plot_losses(args.out / "loss.png", trainer.rows, trainer.losses, len(batches))
    draw_samples(args.out / "samples.png", trainer, captions)
    print(f"made in {time.perf_counter() - start:.0f} s, in {args.out}: checkpoint.pt, samples.png, loss.png, metrics.csv")
    print(f"next: python sample.py {shlex.quote(captions[-1])} --cfg 1 3 7.5 --n 4 --checkpoint {shlex.quote(str(checkpoint))}")


if __name__ == "__main__":
    run_script(main, "--demo, --data digits|DIR, --clip-weights PATH|untrained")
