"""Train a text-to-image model: python train.py --demo, or python train.py --epochs 30.

Read it from top to bottom: settings, data, trainer, run. The equations are in flowclip.py; the
training step, TRAIN-1 to TRAIN-7 of docs/1-objective.md, is here.
"""

import copy
import csv
import io
import itertools
import json
import os
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterable
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from shlex import quote
from time import perf_counter
from typing import Literal

import numpy as np
import torch
import tyro
from einops import rearrange
from filelock import FileLock
from matplotlib.figure import Figure
from PIL import Image, ImageOps, PngImagePlugin
from sklearn.datasets import load_digits
from torch import distributed
from torch.nn.utils.rnn import pad_sequence
from torchvision import datasets
from torchvision.transforms.v2.functional import pil_to_tensor, resize
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

import flowclip
from flowclip import UserError


# ---- Settings: one flag per field; the comment of a field is its help ----------------------------
@dataclass
class Config:
    """Train a text-to-image model."""

    demo: bool = False  # a preset: real digits, a small model, no download, under two minutes

    # What is learned from
    data: str = "cifar10"  # cifar10, cifar100, mnist, fashion-mnist, digits, or a folder
    img_size: int = 0  # pixels per side; 0: as the data are, of a folder at most 64
    held_out: bool = True  # keep one image in fifty apart (or the test set), and say its loss
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
    warmup: int = 0  # steps at the start in which the learning rate rises
    cooldown: float = 0.0  # share of all steps, at the end, in which it falls to 0
    weight_decay: float = 0.01  # of AdamW
    text_drop: float = 0.1  # share of captions replaced by the null text
    ema: float = 0.999  # decay of the averaged weights, which are sampled from
    seed: int = 0  # of the first weights, the order, the noise, the drops

    # The run
    device: str = "auto"  # cuda, mps, cpu; auto: the best at hand
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 where the device is fast in it
    compile: bool = torch.cuda.is_available()  # torch.compile the blocks; on where a GPU is
    out: str = ""  # the run folder; by default runs/ and the name of the data
    resume: bool = False  # go on from the checkpoint in the run folder, if there is one
    overwrite: bool = False  # start anew, over the checkpoint in the run folder
    max_steps: float = inf  # stop after this step
    save_every: float = inf  # steps between checkpoints, beside the one after each epoch
    sample_every: float = inf  # epochs between pictures, beside the one at the end


DEMO = (  # what --demo stands for
    "--data digits --clip-weights untrained --embed-dim 128 --depth 4 --heads 4 --patch-size 2 "
    "--epochs 22 --lr 1e-3 --warmup 100 --cooldown 0.2 --ema 0.99 --out runs/demo"
)
MAY_CHANGE = (  # when a run is resumed
    "data clip_weights demo epochs lr cooldown device precision compile out overwrite "
    "max_steps save_every sample_every"
)
AT_LEAST_1 = "epochs batch_size embed_dim depth heads patch_size max_steps save_every sample_every"


def check_numbers(config):
    """UserError for a number that would train nothing, or something else, in silence."""
    for name, value in vars(config).items():
        least = name in AT_LEAST_1.split()
        most = 1 if name in ("text_drop", "cooldown", "ema") else inf
        if isinstance(value, int | float) and not least <= value <= most:
            raise UserError(f"--{name.replace('_', '-')} {value} is not in {least:d} to {most}")


@contextmanager
def blame(what):
    """What goes wrong inside is a mistake of the user: a UserError that names the flag or file."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{what}: {error!s:.300}") from None


def get_rank():
    """The number of this process: 0, unless torchrun has started several."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def say(text):
    """Print at once. A closed terminal, or a full disk under the log, ends no run."""
    if get_rank() == 0:
        with suppress(OSError):
            print(text, flush=True)


# ---- Data: uint8 images, their labels, and one caption per label ---------------------------------
PICTURES = "loss.png", "samples.png"  # of a run; where its checkpoint lies, they are no data
TORCHVISION = {  # --data: the class that downloads it
    "cifar10": "CIFAR10", "cifar100": "CIFAR100", "mnist": "MNIST", "fashion-mnist": "FashionMNIST",
}  # fmt: skip


def load_data(name, img_size=0, train=True):
    """A folder, or else a data set by its name -> images [N, C, H, W], labels [N], captions.

    train=False: the test images instead, of a data set that torchvision downloads.
    """
    folder = Path(name).expanduser()
    if folder.is_dir() or name not in (*TORCHVISION, "digits"):
        return load_folder(folder, img_size)
    if name == "digits":
        found = load_digits()  # handwritten
        found.data = found.images * 255 / 16  # [1797, 8, 8], the values were 0 to 16
        found.targets = found.target
        found.classes = datasets.MNIST.classes
    else:
        source = f"--data {name}, into data/ from the network, unlike --data digits and --data DIR"
        with blame(source), FileLock("data/download.lock"):  # one process after another
            found = getattr(datasets, TORCHVISION[name])("data", train, download=True)
    images = torch.as_tensor(found.data).round().byte()
    images = rearrange(images, "n h w ... -> n (...) h w")  # digits and MNIST have no channels
    if img_size:
        images = resize(images, [img_size, img_size])
    # "7 - seven" is a class of MNIST
    classes = [title.split(" - ")[-1].replace("_", " ").lower() for title in found.classes]
    return images, torch.as_tensor(found.targets), flowclip.make_captions(classes)


def walk(folder):
    """The files below a folder, without the hidden. Links are followed, unless they lead up."""
    for path in sorted(folder.iterdir()):  # OSError for a link to nothing
        if path.name.startswith((".", "@", "__")):
            continue
        if path.is_file():
            if path.name not in PICTURES or not (folder / "checkpoint.pt").exists():
                yield path
        elif not folder.resolve().is_relative_to(path.resolve()):
            yield from walk(path)


def path_key(path):
    """A path as it is compared: absolute, slashes forward, letters composed, its ending small."""
    path, ending = os.path.splitext(os.path.abspath(f"{path}".replace("\\", "/")))
    return unicodedata.normalize("NFC", path + ending.lower())


def read_metadata(path):
    """(path of an image, text) of each row. ValueError gives the line that is wrong."""
    lines = io.StringIO(path.read_text("utf-8-sig")).readlines()
    table = csv.reader(lines, skipinitialspace=True, strict=True)
    columns = None
    for number, line in enumerate(lines, 1):
        if number <= table.line_num or not line.strip(", \n"):
            continue  # the row before has it, or nobody
        try:
            if path.suffix.lower() == ".csv":
                fields = next(filter(any, table))
                columns = columns or fields
                row = dict(zip(columns, fields, strict=True))
                if columns.count("file_name") + columns.count("text") > 2:
                    raise ValueError  # which of them is meant?
            else:
                row = json.loads(line)
            image = path.parent / row["file_name"].strip()
            text = row["text"].strip()
        except Exception:
            raise ValueError(
                f"line {number}: expected one file_name and one text, and no field more than the "
                f"first line has, found {line.strip():.80}"
            ) from None
        if image.name != "file_name":  # the first line of a CSV names its columns
            yield image, text


def find_captions(folder):
    """(path, caption) of the images below a folder, once for each of their captions [DATA-6]."""
    paths = []
    texts = {}  # key of an image, or of one without its ending: its texts
    others = []  # the endings of what is passed over
    with blame(f"--data {folder}"):
        files = [*walk(folder)]  # found before any is read
    for path in files:
        ending = path.suffix.lower()
        pairs = []
        with blame(f"--data {path}"):
            if ending in (*datasets.folder.IMG_EXTENSIONS, ".gif"):
                paths.append(path)
            elif ending in (".txt", ".caption"):
                pairs = [(path.with_suffix(""), path.read_text("utf-8-sig").strip())]
            elif path.name.lower() in ("metadata.csv", "metadata.jsonl"):
                pairs = [*read_metadata(path)]
            else:
                others.append(ending)
        for image, text in pairs:
            texts.setdefault(path_key(image), []).append(text)
    keys = [path_key(path) for path in paths]
    keys = [
        key if key in texts else path_key(path.with_suffix("")) for key, path in zip(keys, paths)
    ]
    untaken = [key for key in sorted(texts.keys() - keys) for _ in texts[key]]
    named = flowclip.make_captions(
        [path.absolute().parent.name.replace("_", " ") for path in paths]
    )
    say(
        f"folder {folder}: {len(paths):,} images, {sum(map(len, texts.values())):,} texts, "
        f"{len(untaken):,} of them taken by no image {untaken[:1]}; "
        f"{sum(key not in texts for key in keys):,} called by their folder, as {named[:1]}; "
        f"passed over: {len(others)} {sorted(set(others))}"
    )
    if not paths or texts and texts.keys().isdisjoint(keys):
        raise UserError(
            f"--data {folder}: {len(paths)} images, and none has a text of these {untaken[:1]}"
        )
    return [  # half an emoji, or a letter of another encoding, becomes "?"
        (path, caption.encode(errors="replace").decode())
        for path, key, name in zip(paths, keys, named)
        for caption in texts.get(key, [name])
    ]

PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**30  # texts are no pixels


def read_image(path):
    """-> a PIL image in RGB, upright, on white."""
    with blame(f"--data {path}"):
        image = Image.open(path)
        with suppress(Exception):  # what says which side is up may be broken
            image = ImageOps.exif_transpose(image)
        if image.mode[0] in "IF":
            raise ValueError("its greys have more than 8 bits")
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        return white


def load_folder(folder, img_size):
    """The images below a folder, cropped about their centres, their labels and captions.

    An image of several captions is there once for each. UserError names the file that is wrong.
    """
    paths, captions = zip(*find_captions(folder))
    size = img_size or min(64, *read_image(paths[0]).size) // 8 * 8 or 8
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)

    def fill(row):  # each writes its own: no image is held twice
        images[row] = pil_to_tensor(ImageOps.fit(read_image(paths[row]), (size, size)))

    thread_map(fill, range(len(paths)), desc="reading", leave=False, disable=None)
    captions, labels = np.unique(np.array(captions, object), return_inverse=True)
    return images, torch.from_numpy(labels), captions.tolist()


def seeded(device, *key):
    """Randomness that is a function of a key such as (seed, step): a resumed run repeats it.

    Its last number says what for: 0 the order, 1 a step, 2 what is held out, 3 the loss of that.
    """
    seed = np.random.SeedSequence(key).generate_state(1).item()
    return torch.Generator(device).manual_seed(seed)  # [TRAIN-4]


@dataclass
class Batches:
    """Batches (images in [-1, 1], labels), shuffled anew each epoch; the last part is dropped."""
    images: torch.Tensor  # uint8 [N, C, H, W]
    labels: torch.Tensor  # [N]
    batch_size: int
    seed: int = 0
    epoch: int = 0
    rows: torch.Tensor | None = None  # which of the N; None: all

    def __post_init__(self):
        if self.rows is None:
            self.rows = torch.arange(len(self.labels))

    def __len__(self):
        return len(self.rows) // self.batch_size

    def __iter__(self):
        order = torch.randperm(len(self.rows), generator=seeded("cpu", self.seed, self.epoch, 0))
        for batch in self.rows[order].split(self.batch_size)[: len(self)]:
            images = self.images[batch.to(self.images.device, non_blocking=True)]
            yield flowclip.normalize_images(images), self.labels[batch]


def hold_out(batches, config):
    """-> Batches that are not trained on: the test set, or one in fifty that `batches` gives up."""
    if config.data in TORCHVISION and not Path(config.data).is_dir():
        images, labels, _ = load_data(config.data, config.img_size, train=False)
        return Batches(images, labels, min(len(labels), config.batch_size))
    rows = torch.randperm(len(batches.rows), generator=seeded("cpu", config.seed, 0, 2))
    rows, batches.rows = rows.tensor_split([len(rows) // 50])
    batch_size = min(len(rows), config.batch_size) or 1
    return Batches(batches.images, batches.labels, batch_size, rows=rows)


# ---- The trainer ---------------------------------------------------------------------------------
@contextmanager
def noting_errors():
    """What stands beside training does not end it: where a file cannot be written, a note."""
    try:
        yield
    except OSError as error:
        say(f"note: {error}")


@dataclass(repr=False, eq=False)
class TextConditionalTrainer:
    """AdamW on the flow-matching loss, with null-text dropout and averaged weights (EMA).

    dataloader: gives (images [B, C, H, W] in [-1, 1], labels), once per epoch; its `.epoch`, if it
    has one, is set before. caption_fn: labels -> a list of B captions. held_out: gives what is not
    trained on, in the same way. total_steps: of the whole run; in the last `cooldown` of them the
    rate falls. metrics: the path of metrics.csv. Under torch.distributed each process takes a part
    of B.
    """
    model: torch.nn.Module
    text_encoder: torch.nn.Module
    dataloader: Iterable
    caption_fn: Callable
    lr: float = 1e-4
    weight_decay: float = 0.01
    text_drop_prob: float = 0.1
    device: torch.device | str | None = None
    ema: float = 0.999
    warmup: int = 0
    precision: str = "auto"
    seed: int = 0
    metrics: Path | None = None
    total_steps: float = inf
    cooldown: float = 0
    held_out: Iterable = ()
    step = epoch = rank = stop_signal = 0  # stop_signal: the number of a signal, once it has come
    written = 0  # rows of metrics.csv that this process has written
    world_size = 1  # processes

    def __post_init__(self):
        self.device = self.device or flowclip.get_device()
        self.model.to(self.device)
        self.ema_model = copy.deepcopy(self.model).eval()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), float(self.lr), weight_decay=float(self.weight_decay),
            fused=True,
        )  # fmt: skip
        self.parallel_model = self.model
        if distributed.is_initialized():
            self.rank = get_rank()
            self.world_size = distributed.get_world_size()
            self.parallel_model = torch.nn.parallel.DistributedDataParallel(self.model)
        self.losses = []  # one mean per epoch
        self.epoch_losses = []  # of each step of this epoch, on the device: a step never waits
        self.held_out_losses = []  # (step, loss), one per epoch
        self.recent = []  # (loss, seconds per image) of each step since the last row
        self.rows = ["step,epoch,loss,images_per_second\n"]
        self.tokens = {}  # caption -> Z of its real tokens [length, D], on the CPU
        self.context_of([""])
        self.autocast = flowclip.autocast(self.device, self.precision)
        with self.autocast:
            say(
                f"model: {sum(weight.numel() for weight in self.model.parameters()):,} parameters, "
                f"{self.device}, torch {torch.__version__}, "
                f"{'bf16' if torch.is_autocast_enabled(torch.device(self.device).type) else 'fp32'}"
            )

    def context_of(self, captions):
        """B captions -> context [B, M, D] and mask [B, M], where M is the longest of them.

        Each distinct caption meets CLIP once; of its vectors the real tokens are kept [TRAIN-3].
        """
        new = [caption for caption in dict.fromkeys(captions) if caption not in self.tokens]
        if new:
            for caption, Z, mask in zip(new, *self.text_encoder(new)):
                self.tokens[str(caption)] = Z[mask.bool()].cpu()
        texts = [self.tokens[caption] for caption in captions]
        context = pad_sequence(texts, batch_first=True)
        mask = pad_sequence([torch.ones(len(text)) for text in texts], batch_first=True).bool()
        return (tensor.to(self.device, non_blocking=True) for tensor in (context, mask))

    def start_at_mean(self, images):
        """The first prediction is the mean velocity, E[v] = -E[x0], patch by patch [TRAIN-8]."""
        last = getattr(self.model, "final_linear", None)
        if last and not last.weight.any():  # nothing has been learned yet
            mean = flowclip.patchify(images, self.model.patch_size).mean(dim=(0, 1))
            last.bias.data = -mean.to(self.device)

    def loss(self, model, images, captions, key, text_drop_prob=0, part=slice(None)):
        """The loss of a part of a batch; noise, times and coins are drawn for all of it, by key."""
        random = seeded(self.device, self.seed, *key)  # [TRAIN-4]
        x1 = torch.randn(images.shape, generator=random, device=self.device)
        t, coin = torch.rand(2, len(images), generator=random, device=self.device)
        Z, mask = self.context_of([*captions[part], ""])  # the last row is the null text
        drop = coin[part] < text_drop_prob  # [TRAIN-2] one coin a sample
        context, mask = flowclip.drop_text(Z[:-1], mask[:-1], Z[-1:], mask[-1:], drop)
        x0 = images[part].to(self.device)
        with self.autocast:
            return flowclip.flow_matching_loss(model, x0, context, mask, x1=x1[part], t=t[part])

    def train_step(self, images, captions):
        """One step of AdamW and of the average -> the loss, still on the device."""
        B = len(images)
        if isinstance(captions, str) or len(captions) != B:
            raise ValueError(f"caption_fn gave {captions!r:.80}, expected {B} captions")
        if B % self.world_size:
            raise UserError(f"--batch-size {B} is no multiple of {self.world_size} processes")
        if self.step == 0:
            self.start_at_mean(images)
        mine = slice(self.rank, None, self.world_size)  # of two processes every other sample
        loss = self.loss(
            self.parallel_model, images, captions, (self.step, 1), self.text_drop_prob, part=mine
        )

        rise = (self.step + 1) / (self.warmup or 1)
        fall = (self.total_steps - self.step) / (self.cooldown or 1)
        self.optimizer.param_groups[0]["lr"] = float(self.lr * min(1, rise, fall))  # [TRAIN-5]
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()  # [TRAIN-1]
        self.step += 1
        decay = min(self.ema, (1 + self.step) / (10 + self.step))  # [TRAIN-6] short at first
        update_average = torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
        update_average([*self.ema_model.parameters()], [*self.model.parameters()], None)
        loss = loss.detach() / self.world_size
        if self.world_size > 1:
            distributed.all_reduce(loss)
        return loss

    def train(self, num_epochs, max_steps=inf):
        """Train for `num_epochs` more, or until step `max_steps` -> losses, one mean per epoch."""
        for _ in range(num_epochs):
            if hasattr(self.dataloader, "epoch"):
                self.dataloader.epoch = self.epoch
            clock = perf_counter()
            bar = tqdm(
                self.dataloader, f"epoch {self.epoch + 1}", leave=False, disable=self.rank or None
            )
            for images, labels in itertools.islice(bar, len(self.epoch_losses), None):
                if self.step >= max_steps or self.stopped():
                    return self.losses
                if not self.epoch_losses and not images.abs().max() <= 1.5:
                    raise ValueError(f"images are {images!r:.80}, expected none beyond -1 and 1")
                loss = self.train_step(images, self.caption_fn(labels))
                self.epoch_losses.append(loss)
                self.recent.append((loss, (perf_counter() - clock) / len(images)))
                clock = perf_counter()
                if self.step % 10 == 0:
                    bar.set_postfix(loss=self.log())
            if not self.epoch_losses:
                raise UserError("no batch: fewer images than --batch-size, or none but held out")
            self.losses.append(torch.tensor(self.epoch_losses).mean().item())
            self.epoch += 1
            self.epoch_losses = []
            said = f"Epoch {self.epoch}: avg_loss = {self.losses[-1]:.4f}"
            if self.held_out:
                self.held_out_losses.append((self.step, self.held_out_loss()))
                said += f", held_out_loss = {self.held_out_losses[-1][1]:.4f}"
            say(f"{said} (epoch {self.epoch}/step {self.step})")
        return self.losses

    @torch.no_grad()
    def held_out_loss(self):
        """The loss of the averaged model on held_out; noise and times are the same each time."""
        losses = [
            self.loss(self.ema_model, images, self.caption_fn(labels), (number, 3))
            for number, (images, labels) in enumerate(self.held_out)
        ]
        return torch.stack(losses).mean().item()

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
        """Add a row of metrics.csv over the steps since the last row -> their mean loss."""
        self.check_finite()
        loss, seconds = torch.tensor(self.recent).mean(dim=0).tolist()
        epoch = self.epoch + bool(self.epoch_losses)  # counted from 1
        self.rows.append(f"{self.step},{epoch},{loss:.6f},{1 / seconds:.1f}\n")
        self.recent = []
        if self.metrics:
            start, self.written = self.written, 0  # if this fails, all of them again
            with noting_errors():
                with open(self.metrics, "a" if start else "w") as file:
                    file.writelines(self.rows[start:])
                self.written = len(self.rows)  # now they are: a full disk shows when it is closed
        return loss

    def check_finite(self):
        """UserError if a weight is not finite, as after a step whose loss was not."""
        if not torch.nn.utils.get_total_norm(self.model.parameters()).isfinite():
            raise UserError(f"a weight is not finite, step {self.step}: try a lower --lr")

    def save_checkpoint(self, path, **settings):
        """Write what sampling needs, and what resume() needs [TRAIN-7]."""
        self.check_finite()  # else the last good one stays
        meta = {
            "config": getattr(self.model, "config", {}),
            "image_shape": getattr(self.model, "image_shape", None),
            "clip": self.text_encoder.model_name, "clip_weights": self.text_encoder.pretrained,
            "clip_null": self.tokens[""][-1].tolist(),
            "captions": list(filter(None, self.tokens)),
            "epoch": self.epoch, "step": self.step, "losses": self.losses,
        }  # fmt: skip
        state = "step epoch losses epoch_losses held_out_losses recent rows tokens"  # for resume()
        training = {
            "state": {name: getattr(self, name) for name in state.split()},
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "run": settings,
        }  # fmt: skip
        if not self.rank:
            flowclip.save_checkpoint(path, self.ema_model, meta, training)
        if self.world_size > 1:
            distributed.barrier()  # a process that ends makes torchrun end the others, too

    def resume(self, path, **settings):
        """Go on where save_checkpoint stopped, with the same settings, also inside an epoch."""
        checkpoint = flowclip.read_checkpoint(path)
        training = checkpoint["training"]
        for name, now in settings.items():
            then = training["run"].get(name)
            if name == "captions":  # those that differ
                then, now = {*then} - {*now}, {*now} - {*then}
            if then != now:
                said = f"--resume: {name} was {then!r:.200} and now is {now!r:.200}"
                if name not in MAY_CHANGE.split():
                    raise UserError(said)
                say(said)
        self.ema_model.load_state_dict(checkpoint["model"])
        self.model.load_state_dict(training["model"])
        self.optimizer.load_state_dict(training["optimizer"])
        null = self.tokens[""]
        vars(self).update(training["state"])
        if not torch.allclose(null, self.tokens[""], atol=0.05):
            raise UserError(f"--resume: {path} was trained with other text weights")
        say(f"--resume: {self.step} steps are done")


# ---- The run -------------------------------------------------------------------------------------
def draw_pictures(out, trainer, captions):
    """loss.png: the losses, held out and not. samples.png: the first 20 captions at w = 3."""
    table = np.genfromtxt(trainer.rows, delimiter=",", names=True)
    axes = Figure().subplots()
    axes.semilogy(table["step"], table["loss"])
    axes.semilogy(*zip(*trainer.held_out_losses), marker=".")
    axes.set_title("flow-matching loss by step, means of 10; dots: of what is held out")
    prompts = captions[:20]
    with trainer.autocast:
        images = flowclip.sample_text_conditional(
            trainer.ema_model, trainer.text_encoder, prompts, trainer.model.image_shape,
            cfg_scale=3, generator=seeded("cpu", trainer.seed),
        )  # fmt: skip
    with noting_errors():
        axes.figure.savefig(out / "loss.png")
    with noting_errors():
        flowclip.save_picture(out / "samples.png", flowclip.denormalize_images(images), 5, prompts)


def begin_process(name):
    """-> the device. One of several processes, which torchrun has started, joins the others."""
    several = distributed.is_torchelastic_launched()
    with blame(f"--device {name}"):
        device = flowclip.get_device() if name == "auto" else torch.device(name)
        if several and device.type == "cuda":
            torch.cuda.set_device(distributed.get_node_local_rank())
        torch.zeros(1, device=device)
    if several:
        distributed.init_process_group()
    return device


def run(at_end):
    """From the flags to the pictures. at_end: an ExitStack of what is undone, however it ends."""
    preset = DEMO.split() if "--demo" in sys.argv else []
    config = tyro.cli(Config, args=preset + sys.argv[1:])  # of a flag given twice the last counts
    start = perf_counter()
    check_numbers(config)
    device = begin_process(config.device)
    rank = get_rank()
    out = Path(config.out or f"runs/{Path(config.data).resolve().name}").expanduser()
    checkpoint = out / "checkpoint.pt"
    images, labels, captions = load_data(config.data, config.img_size)
    count, channels, _, size = images.shape
    if size % config.patch_size or config.embed_dim % 4 or config.embed_dim % config.heads:
        raise UserError(
            f"expected --img-size {size} a multiple of --patch-size {config.patch_size}, and "
            f"--embed-dim {config.embed_dim} of 4 and of --heads {config.heads}"
        )
    with blame(f"--out {out}"):
        out.mkdir(parents=True, exist_ok=True)
        if not rank:  # the lock is the system's: it ends with the run, or with a killed process
            at_end.enter_context(FileLock(out / "in-use.lock").acquire(blocking=False))
    exists = checkpoint.exists()
    if exists and config.resume == config.overwrite:
        raise UserError(f"{checkpoint} exists: --resume goes on from it, --overwrite starts anew")
    say(
        f"data: {config.data}, {count:,} images {channels}x{size}x{size}, "
        f"{len(captions)} captions like {captions[0]!r}\n"
        f"text: {config.clip}, weights {config.clip_weights!r}"
    )
    encoder = flowclip.CLIPTextEncoder(config.clip, config.clip_weights, device)

    torch.manual_seed(config.seed % 2**63)
    model = flowclip.TextConditionalDiT(
        size, config.patch_size, channels, config.embed_dim, config.depth, config.heads,
        context_dim=encoder.embed_dim,
    )  # fmt: skip
    batches = Batches(images.to(device), labels, config.batch_size, config.seed)
    held_out = hold_out(batches, config) if config.held_out else ()
    steps = config.epochs * len(batches)
    trainer = TextConditionalTrainer(
        model, encoder, batches, lambda labels: [captions[label] for label in labels],
        config.lr, config.weight_decay, config.text_drop, device, config.ema, config.warmup,
        config.precision, config.seed, None if rank else out / "metrics.csv",
        steps, config.cooldown * steps, held_out,
    )  # fmt: skip
    if config.compile:
        flowclip.compile_blocks(model)
    settings = {"images": count, "captions": captions} | vars(config) | model.config
    del settings["resume"]  # it is no setting of the run
    if config.resume and exists:
        trainer.resume(checkpoint, **settings)
    parts = torch.utils.data.DataLoader(captions, 256)
    for part in tqdm(parts, "captions", leave=False, delay=5, mininterval=10, disable=rank):
        trainer.context_of(part)  # before the first step, so that no step waits

    def stop(number, frame):
        trainer.stop_signal = number
        signal.signal(number, signal.SIG_DFL)  # a second one stops at once

    with ExitStack() as handlers:  # which are put back at its end
        for number in signal.valid_signals() & {1, 2, 15}:  # SIGHUP, SIGINT, SIGTERM
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                handlers.callback(signal.signal, number, signal.getsignal(number))
                signal.signal(number, stop)
        while trainer.epoch < config.epochs and trainer.step < config.max_steps:
            trainer.train(1, min(config.max_steps, trainer.step + config.save_every))
            trainer.save_checkpoint(checkpoint, **settings)
            if number := trainer.stopped():
                say(f"stopped after step {trainer.step}; --resume goes on from {checkpoint}")
                sys.exit(128 + number)
            if not (trainer.epoch_losses or trainer.epoch % config.sample_every or rank):
                draw_pictures(out, trainer, captions)
    if distributed.is_initialized():
        distributed.destroy_process_group()
    if rank:
        return
    if trainer.recent:
        trainer.log()
    draw_pictures(out, trainer, captions)
    say(
        f"made in {perf_counter() - start:.0f} s, in {out}: "
        "checkpoint.pt, metrics.csv, loss.png, samples.png\n"
        f"next: python sample.py {quote(captions[-1])} --cfg 1 3 7.5 "
        f"--checkpoint {quote(str(checkpoint))}"
    )


def main():
    with ExitStack() as at_end:
        run(at_end)


if __name__ == "__main__":
    flowclip.run_script(main)
