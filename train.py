"""Train a text-to-image model: python train.py --demo, or python train.py --epochs 30.

Read it from top to bottom: settings, data, trainer, run. The equations are in flowclip.py; the
training step, TRAIN-1 to TRAIN-7 of docs/6-objective.md, is here.
"""

import copy
import math
import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torchvision
import tyro
from einops import rearrange
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from torch import distributed
from torch.nn.utils.rnn import pad_sequence
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2
from tqdm import tqdm

import flowclip


# ---- Settings: one flag per field; the comment of a field is its help ----------------------------
@dataclass
class Config:
    """Train a text-to-image model."""

    demo: bool = False  # a preset: real digits, a small model, no download, under two minutes

    # What is learned from
    data: str = "cifar10"  # cifar10, digits, or DIR: one sub-folder of images per class
    img_size: int | None = None  # pixels per side; None: as the data are
    clip: str = "ViT-B-32-quickgelu"  # the text encoder, a model of open_clip
    clip_weights: str = "openai"  # its weights: openai, PATH, or untrained

    # The model
    embed_dim: int = 256  # width of the transformer
    depth: int = 6  # its blocks
    heads: int = 8  # attention heads per block
    patch_size: int = 4  # pixels per side of a patch

    # The recipe
    epochs: int = 30  # passes over the data
    batch_size: int = 64  # images per step, of all processes together
    lr: float = 1e-4  # learning rate of AdamW
    warmup: int = 0  # steps in which the learning rate rises
    weight_decay: float = 0.01  # of AdamW
    text_drop: float = 0.1  # share of captions replaced by the null text
    ema: float = 0.999  # decay of the averaged weights, which are sampled from
    seed: int = 0  # of the first weights, the order, the noise, the drops

    # The run
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"  # auto: the best at hand
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 where the device is fast in it
    # torch.compile the blocks; on by default where a GPU and gcc are
    compile: bool = torch.cuda.is_available() and bool(shutil.which("gcc"))
    out: str | None = None  # the run folder; None: runs/ and the name of the data
    resume: bool = False  # go on from the checkpoint in the run folder, if there is one
    overwrite: bool = False  # start anew, over the checkpoint in the run folder
    max_steps: float = math.inf  # stop after this step
    save_every: float = math.inf  # steps between checkpoints, beside the one after each epoch
    sample_every: float = math.inf  # epochs between pictures, beside the one at the end


DEMO = Config(
    data="digits", clip_weights="untrained", embed_dim=128, depth=4, heads=4, patch_size=2,
    epochs=25, lr=1e-3, warmup=100, ema=0.99, out="runs/demo",
)  # fmt: skip
MAY_CHANGE = {  # when a run is resumed
    "demo", "epochs", "device", "precision", "compile", "out", "resume", "overwrite", "max_steps",
    "save_every", "sample_every",
}  # fmt: skip


def parse_args():
    """-> Config; what the command line says wins over the preset."""
    return tyro.cli(
        Config, default=DEMO if "--demo" in sys.argv else Config(), config=[tyro.conf.DisallowNone]
    )


# ---- Data: uint8 images, their labels, and one caption per label ---------------------------------
def load_data(name, img_size=None):
    """cifar10, digits, or a folder -> images [N, C, H, W], labels [N], captions."""
    if name == "cifar10":
        try:
            cifar = torchvision.datasets.CIFAR10("data", download=True)
        except (OSError, RuntimeError) as error:
            raise ConnectionError(
                f"could not download CIFAR-10 into data/: {error}; "
                "--data digits and --data DIR need no network"
            ) from None
        images, labels = cifar.data, cifar.targets  # [50000, 32, 32, 3]
        captions = flowclip.make_cifar10_captions(range(10))
    elif name == "digits":
        digits = load_digits()  # handwritten, values 0 to 16
        images, labels = digits.images[..., None] * 255 / 16, digits.target  # [1797, 8, 8, 1]
        names = "a zero, a one, a two, a three, a four, a five, a six, a seven, an eight, a nine"
        captions = [f"a photo of {name}" for name in names.split(", ")]
    elif Path(name).is_dir():
        return load_folder(Path(name), img_size)
    else:
        raise ValueError(f"--data {name}: neither cifar10, digits, nor a folder that exists")
    images = rearrange(torch.from_numpy(images.round().astype("uint8")), "n h w c -> n c h w")
    if img_size:
        images = v2.functional.resize(images, [img_size, img_size], antialias=True)
    return images.contiguous(), torch.as_tensor(labels), captions


def load_folder(folder, img_size):
    """The images below each sub-folder and their captions, read side by side."""
    paths = sorted(p for p in folder.glob("*/**/*") if p.suffix.lower() in IMG_EXTENSIONS)
    if not paths:
        raise ValueError(f"--data {folder}: no image is there, expected a sub-folder per class")
    size = img_size or min(Image.open(paths[0]).size)  # the short side of the first image
    images, texts = torch.empty(len(paths), 3, size, size, dtype=torch.uint8), []
    with ThreadPool() as pool:
        pairs = pool.imap(lambda path: read_pair(path, size), paths)
        for image, text in tqdm(pairs, f"reading {folder}", len(paths), leave=False, disable=None):
            images[len(texts)] = v2.functional.pil_to_tensor(image)
            texts.append(text)
    label = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return images, torch.tensor([label[text] for text in texts]), list(label)


def read_pair(path, size):
    """-> a PIL image in RGB, upright, on white, cropped about its centre; and its caption."""
    try:
        image = ImageOps.exif_transpose(Image.open(path))
        if image.mode[0] in "IF":
            raise ValueError("its greys have more than 8 bits")
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return ImageOps.fit(image.convert("RGB"), (size, size)), caption_of_file(path)
    except Exception as error:
        raise ValueError(f"{path} or its .txt cannot be read: {error}") from None


def caption_of_file(path):
    """The text of NAME.txt beside the image, else "a photo of a FOLDER" [DATA-6]."""
    text = path.with_suffix(".txt")
    if not text.is_file():
        return flowclip.make_captions([path.parent.name.replace("_", " ")])[0]
    return text.read_text("utf-8-sig").strip()


def generator(device, *key):
    """Randomness that is a function of a key such as (seed, step): a resumed run repeats it."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    return torch.Generator(device).manual_seed(seed)  # [TRAIN-4]


@dataclass
class Batches:
    """Batches (images in [-1, 1], labels), shuffled anew each epoch; the last part is dropped."""
    images: torch.Tensor  # uint8 [N, C, H, W]
    labels: torch.Tensor  # [N]
    batch_size: int
    seed: int = 0
    epoch: int = 0

    def __len__(self):
        return len(self.images) // self.batch_size

    def __iter__(self):
        rand = generator("cpu", self.seed, self.epoch, 0)  # [TRAIN-4]
        order = torch.randperm(len(self.images), generator=rand)
        for rows in order.split(self.batch_size)[: len(self)]:
            images = self.images[rows.to(self.images.device, non_blocking=True)]
            yield flowclip.normalize_images(images), self.labels[rows]


# ---- The trainer ---------------------------------------------------------------------------------
class TextConditionalTrainer:
    """AdamW on the flow-matching loss, with null-text dropout and averaged weights (EMA).

    dataloader: any iterable of (images [B, C, H, W] in [-1, 1], labels), once per epoch; its
    `.epoch`, if it has one, is set before. caption_fn: labels -> a list of B captions.
    metrics: the path of metrics.csv. Under torch.distributed each process takes a part of B.
    """
    STATE = ("step", "epoch", "losses", "epoch_losses", "recent", "rows")

    def __init__(
        self, model, text_encoder, dataloader, caption_fn, lr=1e-4, weight_decay=0.01,
        text_drop_prob=0.1, device=None, *, ema=0.999, warmup=0, precision="auto", seed=0,
        metrics=None,
    ):  # fmt: skip
        self.device = torch.device(device or flowclip.get_device())
        self.model, self.text_encoder = model.to(self.device), text_encoder.to(self.device)
        self.ema_model = copy.deepcopy(model).eval()
        self.dataloader, self.caption_fn = dataloader, caption_fn
        self.lr, self.warmup, self.text_drop_prob, self.ema = lr, warmup, text_drop_prob, ema
        self.precision, self.seed, self.metrics = precision, seed, metrics
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=lr, weight_decay=weight_decay, fused=True
        )
        joined = distributed.is_initialized()
        self.rank = distributed.get_rank() if joined else 0
        self.world_size = distributed.get_world_size() if joined else 1
        self.parallel_model = torch.nn.parallel.DistributedDataParallel(model) if joined else model
        self.step, self.epoch, self.losses = 0, 0, []  # losses: one mean per epoch
        self.epoch_losses = []  # of each step of this epoch, on the device: a step never waits
        self.recent = []  # (loss, images, seconds) of each step since the last row of metrics.csv
        self.rows = ["step,epoch,loss,images_per_second\n"]
        self.stop_signal = 0  # the number of a signal, once it has come
        self.texts = {}  # caption -> Z of its real tokens [length, D], on the CPU
        self.encode_captions([""])

    def encode_captions(self, captions):
        """Each distinct caption meets CLIP once; of its vectors the real tokens are kept."""
        new = [caption for caption in dict.fromkeys(captions) if caption not in self.texts]
        parts = torch.utils.data.BatchSampler(new, 256, drop_last=False)
        for part in tqdm(parts, "encoding captions", leave=False, disable=len(parts) < 2 or None):
            for caption, Z, mask in zip(part, *self.text_encoder(part)):
                self.texts[caption] = Z[mask].cpu()  # [TRAIN-3]

    def context_of(self, captions):
        """B captions -> context [B, M, D] and mask [B, M], where M is the longest of them."""
        self.encode_captions(captions)
        texts = [self.texts[caption] for caption in captions]
        context = pad_sequence(texts, batch_first=True)
        mask = torch.arange(context.shape[1]) < torch.tensor([[len(text)] for text in texts])
        return context.to(self.device, non_blocking=True), mask.to(self.device, non_blocking=True)

    def train_step(self, images, captions):
        """One step of AdamW and of the average -> the loss, still on the device."""
        B, rand = len(images), generator(self.device, self.seed, self.step, 1)  # [TRAIN-4]
        flowclip.check_divisible("the batch size", B, self.world_size)
        x1 = torch.randn(images.shape, generator=rand, device=self.device)
        t, coin = torch.rand(2, B, generator=rand, device=self.device)
        mine = slice(self.rank, None, self.world_size)  # of two processes every other sample
        x0, x1, t = images[mine].to(self.device), x1[mine], t[mine]
        drop = coin[mine] < self.text_drop_prob  # [TRAIN-2] one coin a sample

        Z, mask = self.context_of([*captions[mine], ""])  # the last row is the null text
        context, mask = flowclip.drop_text(Z[:-1], mask[:-1], Z[-1:], mask[-1:], drop)
        with flowclip.autocast(self.device, self.precision):
            loss = flowclip.flow_matching_loss(self.parallel_model, x0, context, mask, x1=x1, t=t)

        warm = min(1, (self.step + 1) / max(1, self.warmup))
        self.optimizer.param_groups[0]["lr"] = self.lr * warm  # [TRAIN-5]
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()  # [TRAIN-1]
        self.step += 1
        decay = min(self.ema, (1 + self.step) / (10 + self.step))  # [TRAIN-6] short at first
        update_average = get_ema_multi_avg_fn(decay)
        update_average([*self.ema_model.parameters()], [*self.model.parameters()], None)
        loss = loss.detach() / self.world_size
        if self.world_size > 1:
            distributed.all_reduce(loss)
        return loss

    def train(self, num_epochs, max_steps=math.inf):
        """Train for `num_epochs` more, or until step `max_steps` -> losses, one mean per epoch."""
        for _ in range(num_epochs):
            if hasattr(self.dataloader, "epoch"):
                self.dataloader.epoch = self.epoch
            clock, title = time.perf_counter(), f"epoch {self.epoch + 1}"
            bar = tqdm(self.dataloader, title, leave=False, disable=self.rank or None)
            for i, (images, labels) in enumerate(bar):
                if i < len(self.epoch_losses):
                    continue  # done before the run was resumed
                if self.step >= max_steps or self.stopped():
                    return self.losses
                loss = self.train_step(images, self.caption_fn(labels))
                self.epoch_losses.append(loss)
                self.recent.append((loss, len(images), time.perf_counter() - clock))
                clock = time.perf_counter()
                if self.step % 10 == 0:
                    bar.set_postfix_str(self.log())
            if not self.epoch_losses:
                raise ValueError("no batch: fewer images than --batch-size, or an empty dataloader")
            self.losses.append(torch.stack(self.epoch_losses).mean().item())
            self.epoch, self.epoch_losses = self.epoch + 1, []
        return self.losses

    def stopped(self):
        """The signal that ends the run, or 0; several processes agree on it every 10 steps."""
        if self.world_size == 1:
            return self.stop_signal
        if self.step % 10:
            return 0
        agreed = torch.tensor(self.stop_signal, device=self.device)
        distributed.all_reduce(agreed, distributed.ReduceOp.MAX)
        return agreed.item()

    def log(self):
        """Add a row to metrics.csv over the steps since the last row -> the same in words."""
        self.check_finite()
        losses, images, seconds = zip(*self.recent)
        loss, rate = torch.stack(losses).mean().item(), sum(images) / sum(seconds)
        epoch = self.epoch + bool(self.epoch_losses)  # counted from 1
        self.rows.append(f"{self.step},{epoch},{loss:.6f},{rate:.1f}\n")
        self.recent = []
        if self.metrics:
            self.metrics.write_text("".join(self.rows))
        return f"loss {loss:.4f}, {rate:,.0f} images/s"

    def check_finite(self):
        """FloatingPointError if a weight is not finite, as after a step whose loss was not."""
        if not torch.nn.utils.get_total_norm(self.model.parameters()).isfinite():
            raise FloatingPointError(f"a weight is not finite, step {self.step}: try a lower --lr")

    def save_checkpoint(self, path, **settings):
        """Write what sampling needs, and what resume() needs [TRAIN-7]."""
        self.check_finite()  # else the last good one stays
        meta = {
            "config": self.model.config, "image_shape": list(self.model.image_shape),
            "clip": self.text_encoder.model_name, "clip_weights": self.text_encoder.pretrained,
            "clip_null": self.texts[""][-1].tolist(), "captions": list(self.texts)[1:],
            "epoch": self.epoch, "step": self.step, "losses": self.losses,
        }  # fmt: skip
        training = {name: getattr(self, name) for name in self.STATE} | {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "run": settings,
        }  # fmt: skip
        if self.rank == 0:
            flowclip.save_checkpoint(path, self.ema_model, meta, training)
        if self.world_size > 1:
            distributed.barrier()  # a process that ends makes torchrun end the others, too

    def resume(self, path, **settings):
        """Go on where save_checkpoint stopped, with the same settings, also inside an epoch."""
        checkpoint = flowclip.read_checkpoint(path, self.device)
        training = checkpoint["training"]
        for name, now in settings.items():
            then = training["run"].get(name)
            if then != now and name not in MAY_CHANGE:
                raise ValueError(f"--resume: {name} was {then!r:.80} and now is {now!r:.80}")
        self.ema_model.load_state_dict(checkpoint["model"])
        self.model.load_state_dict(training["model"])
        self.optimizer.load_state_dict(training["optimizer"])
        for name in self.STATE:
            setattr(self, name, training[name])


# ---- The run -------------------------------------------------------------------------------------
def plot_losses(path, rows):
    """loss.png: the losses of metrics.csv."""
    step, _, loss, _ = np.loadtxt(rows, delimiter=",", skiprows=1, ndmin=2, unpack=True)
    axes = Figure().subplots()
    axes.plot(step, loss)
    axes.set(xlabel="step", ylabel="flow-matching loss, mean of 10 steps")
    axes.figure.savefig(path)


def draw_samples(path, trainer, captions):
    """samples.png: one image per caption (at most 20, spread over the list) at w = 3."""
    prompts, model = captions[:: len(captions) // 20 + 1], trainer.ema_model
    with flowclip.autocast(trainer.device, trainer.precision):
        images = flowclip.sample_text_conditional(
            model, trainer.text_encoder, prompts, model.image_shape, cfg_scale=3,
            generator=torch.Generator().manual_seed(trainer.seed),
        )  # fmt: skip
    flowclip.save_picture(path, flowclip.denormalize_images(images), 5, prompts)


def main():
    config, start = parse_args(), time.perf_counter()
    device = flowclip.get_device() if config.device == "auto" else torch.device(config.device)
    launched = distributed.is_torchelastic_launched()  # by torchrun
    if launched:
        if device.type == "cuda":
            torch.cuda.set_device(distributed.get_node_local_rank())
        distributed.init_process_group()
    rank = distributed.get_rank() if launched else 0
    if rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 only the first prints
    out = Path(config.out or f"runs/{Path(config.data).resolve().name}")
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists() and config.resume == config.overwrite:
        raise ValueError(f"{checkpoint} exists: --resume goes on from it, --overwrite starts anew")

    if rank:
        distributed.barrier()  # the first process downloads, into the folder that all share
    images, labels, captions = load_data(config.data, config.img_size)
    if launched and not rank:
        distributed.barrier()
    count, channels, _, size = images.shape
    print(
        f"data: {config.data}, {count:,} images {channels}x{size}x{size}, "
        f"{len(captions)} captions like {captions[0]!r}\n"
        f"text: {config.clip}, weights {config.clip_weights!r}"
    )
    encoder = flowclip.CLIPTextEncoder(config.clip, config.clip_weights, device)

    torch.manual_seed(config.seed)
    model = flowclip.TextConditionalDiT(
        size, config.patch_size, channels, config.embed_dim, config.depth, config.heads,
        context_dim=encoder.embed_dim,
    )  # fmt: skip
    trainer = TextConditionalTrainer(
        model, encoder, Batches(images.to(device), labels, config.batch_size, config.seed),
        lambda labels: [captions[label] for label in labels], config.lr, config.weight_decay,
        config.text_drop, device, ema=config.ema, warmup=config.warmup,
        precision=config.precision, seed=config.seed, metrics=None if rank else out / "metrics.csv",
    )  # fmt: skip
    trainer.encode_captions(captions)
    if config.compile:
        for block in model.blocks:
            block.compile()  # equal blocks share one compilation
    settings = vars(config) | model.config | {"images": count, "captions": captions}
    if config.resume and checkpoint.exists():
        trainer.resume(checkpoint, **settings)
    out.mkdir(parents=True, exist_ok=True)
    with flowclip.autocast(device, config.precision):
        bf16 = torch.is_autocast_enabled(device.type)
    print(
        f"model: {sum(weight.numel() for weight in model.parameters()):,} parameters, {device}, "
        f"{'bf16' if bf16 else 'fp32'}, torch {torch.__version__}; {trainer.step} steps are done"
    )

    def stop(number, frame):
        trainer.stop_signal = number
        signal.signal(number, signal.SIG_DFL)  # a second one stops at once

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    while trainer.epoch < config.epochs and trainer.step < config.max_steps:
        epoch = trainer.epoch
        trainer.train(1, min(config.max_steps, trainer.step + (config.save_every or math.inf)))
        trainer.save_checkpoint(checkpoint, **settings)
        if trainer.epoch > epoch:
            print(
                f"epoch {trainer.epoch}/{config.epochs}: mean loss {trainer.losses[-1]:.4f}, "
                f"{time.perf_counter() - start:.0f} s", flush=True,
            )  # fmt: skip
            if trainer.epoch % config.sample_every == 0 and not rank:
                draw_samples(out / "samples.png", trainer, captions)
        if number := trainer.stopped():
            print(f"stopped after step {trainer.step}; --resume goes on from {checkpoint}")
            sys.exit(128 + number)
    if not rank:
        if trainer.recent:
            trainer.log()
        plot_losses(out / "loss.png", trainer.rows)
        draw_samples(out / "samples.png", trainer, captions)
        print(
            f"made in {time.perf_counter() - start:.0f} s, in {out}: "
            "checkpoint.pt, metrics.csv, loss.png, samples.png\n"
            f"next: python sample.py {captions[-1]!r} --cfg 1 3 7.5 --checkpoint {checkpoint}"
        )


if __name__ == "__main__":
    flowclip.run_script(main)
