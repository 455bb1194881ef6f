"""The course as a notebook: python docs/build/tour.py writes docs/tour.ipynb, with what it shows.

The experiments of the chapters, each with a picture where it has one; after chapter 7 the main job:
CIFAR-10 where a GPU is, else the demo's digits. Needs docs/requirements-test.txt, and runs for some
minutes.
"""

import re
import textwrap
from itertools import groupby
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

DOCS = Path(__file__).parents[1]

ADDRESS = "https://github.com/YOUR_NAME/flowclip"  # that of your copy; README's badge has it, too
FOLDER = "" if "YOUR_NAME" in ADDRESS else f"{ADDRESS}/blob/main/docs/"  # what links begin with

BEGIN = f"""
# A tour of flowclip

How a sentence becomes a picture, in an hour: first two dots, then each part of [the
chapters](README.md), then a model that draws, then sentences about two objects. Change what you
like and run it again. The mathematics is in [flowclip.py](../flowclip.py).

On your machine: `pip install -r requirements.txt notebook`, then `jupyter notebook
docs/tour.ipynb`. On Colab: choose a GPU (Runtime, Change runtime type); the next cell brings the
rest.

    import logging, os, warnings
    from IPython.display import Image
    if not any(os.path.exists(f"{{folder}}/flowclip.py") for folder in (".", "..", "flowclip")):
        !git clone -q {ADDRESS} flowclip
        !pip install -q -r flowclip/requirements.txt
    for folder in ("flowclip", ".."):  # the clone; else a notebook starts in docs/
        if os.path.exists(f"{{folder}}/flowclip.py"):
            os.chdir(folder)
    warnings.filterwarnings("ignore", message="IProgress")  # a plain progress bar will do
    warnings.showwarning = lambda message, *_: print(f"note: {{message}}")
    logging.getLogger("matplotlib").setLevel("ERROR")  # another font will do, too
    import matplotlib.pyplot as plt
    import flowclip
"""

# What follows the experiment of a chapter, with its names: a picture, and what to change.
PICTURES = {
    "0-idea": """
The paths of "upper", from the noise at $t = 1$ on the left to the dots on the right. Give `w` other
values, also -1. Then train three dots: what do you have to change?

    start = torch.linspace(-2, 2, 12).view(12, 1, 1, 1)
    real = torch.ones(12, 1, dtype=torch.bool)
    text = words[1].expand(12, 1, 3), real, words[2:].expand(12, 1, 3), real
    figure, axes = plt.subplots(1, 3, figsize=(7, 2.2), sharey=True)
    for axis, w in zip(axes, (0, 1, 3)):
        velocity = lambda x, t: flowclip.cfg_velocity(model, x, t, *text, w)
        states = [start]
        with torch.no_grad():
            flowclip.integrate(velocity, start, 50, callback=lambda n, t, x: states.append(x))
        axis.plot(torch.linspace(1, 0, 51), torch.stack(states).flatten(1))
        axis.set(title=f"w = {w}", xlabel="t", xlim=(1, 0))
""",
    "1-objective": """
All million lines at $t = 0.5$: where they pass, and their velocity. The best answer is their mean,
the white line. What becomes of it at $t = 0.9$, and at $t = 0.1$?

    plt.figure(figsize=(4, 3))
    plt.hist2d(xt.numpy(), v.numpy(), 80, range=[[-2, 2], [-4, 3]])
    place = torch.tensor([-2.0, 2.0])
    plt.plot(place, -mean + slope * (place - (1 - t) * mean), "white")
    plt.gca().set(xlabel="xt", ylabel="v", xlim=(-2, 2), ylim=(-4, 3));
""",
    "2-sampling": """
The error against the number of steps. On these axes a slope of -1 is $1/S$, and -2 is $1/S^2$.

    plt.figure(figsize=(4, 3))
    steps = [5, 10, 20, 40, 80, 160]
    for solver in ("euler", "heun"):
        ends = [flowclip.integrate(field, start, S, solver).item() for S in steps]
        plt.loglog(steps, [abs(end - (3 / math.e - 1)) for end in ends], "o-", label=solver)
    plt.legend()
    plt.gca().set(xlabel="steps", ylabel="error");
""",
    "4-text": """
How close are prompts to each other? Cosines of their pooled vectors, without the mean of all. This
tower was not trained, so only shared words count. Put in prompts of your own.

    prompts = ["a red car", "a red bus", "a blue car", "a photo of a cat", "a photo of a dog"]
    pooled = encoder.encode(prompts, return_pooled=True)[1]
    pooled = pooled - pooled.mean(dim=0)
    pooled = pooled / pooled.norm(dim=1, keepdim=True)
    plt.figure(figsize=(4, 3))
    plt.imshow(pooled @ pooled.T)
    plt.yticks(range(5), prompts)
    plt.xticks([])
    plt.colorbar();
""",
    "5-attention": """
A of both samples, one head: 64 patches down, 7 tokens across. Nothing is trained, so all real
tokens weigh nearly the same. Multiply `x` by 30: what changes?

    figure, axes = plt.subplots(1, 2, figsize=(4, 3))
    for axis, weights in zip(axes, A[:, 0].detach()):
        axis.imshow(weights, vmin=0, vmax=1, aspect="auto")
        axis.set(xlabel="token", ylabel="patch")
    figure.tight_layout()
""",
    "6-transformer": """
How a time looks to the model: a row is a $t$, from 0 above to 1 below, a column a feature.

    plt.figure(figsize=(4, 3))
    plt.imshow(flowclip.timestep_embedding(torch.linspace(0, 1, 40), 64), aspect="auto")
    plt.gca().set(xlabel="64 features", ylabel="40 times");
""",
    "7-data": """
Ten of the digits that the demo learns from, with their captions.

    import train
    images, labels, captions = train.load_data("digits")
    titles = [captions[label] for label in labels[:10]]
    flowclip.save_picture("runs/digits.png", images[:10], 5, titles)
    Image("runs/digits.png")
""",
    "8-composition": r"""
Eight pictures with their sentences, as a model sees them in training.

    rand = np.random.default_rng(1)
    names = draw_shapes.split_captions()
    captions = [*names["one"][:2], *names["two"][::60]][:8]
    pictures = [draw_shapes.draw_caption(caption, 24, rand) for caption in captions]
    images = [torch.tensor(picture).permute(2, 0, 1) for picture in pictures]
    flowclip.save_picture("runs/shapes.png", images, 4, captions)
    Image("runs/shapes.png")

Set `LONG = True` to train a model of them: 23 minutes on two CPU cores with AMX; a GPU was not
measured. Then ask for sentences of your own. No picture of the training has a red square.

    LONG = False
    asked = '"a red square" "a red square left of a cyan circle" "a cyan circle above a red square"'
    if LONG:
        !python docs/studies/draw_shapes.py shapes --n 20000
        !python train.py --data shapes --clip-weights untrained --embed-dim 128 --depth 4 \
            --heads 4 --lr 1e-3 --warmup 100 --epochs 55 --compile --out runs/shapes --resume
        !python sample.py {asked} --cfg 3 --n 4 --checkpoint runs/shapes/checkpoint.pt \
            --out runs/asked.png
    Image("runs/asked.png") if LONG else None
""",
}

MAIN_JOB = r"""
## The main job

On a GPU this is the documented job: CIFAR-10 with OpenAI's text weights, 30 epochs. It downloads
170 MB of images and 600 MB of CLIP. How long it takes on a GPU was not measured.
Without a GPU it is the demo: 1,797 real handwritten digits, a small model, a text tower that
[nobody trained](4-text.md#which-weights), no download, and a few minutes on two CPU cores. If a
download fails, or you have no time, set `SMALL = True`.

    import torch
    SMALL = not torch.cuda.is_available()
    if SMALL:
        job, run = "--demo", "runs/demo"
        one, other = "a photo of a three", "a photo of a seven"
    else:
        job, run = "--epochs 30", "runs/cifar10"
        one, other = "a photo of a horse", "a photo of a ship"

Train ([chapter 1](1-objective.md)). If you interrupt it, it writes a checkpoint. Run the cell
again, and it goes on.

    !python train.py {job} --resume
    Image(f"{run}/samples.png")

The loss. It never reaches zero, since many lines pass near one point ([how low it can
go](1-objective.md#the-exact-model)).

    Image(f"{run}/loss.png")

Two prompts, one noise, four guidance scales ([chapter 3](3-guidance.md)). At $w = 0$ the prompt is
not read. At 1 it is read, but a fifth to three quarters of our draws missed it. Above 1 it is
exaggerated.

    !python sample.py "{one}" "{other}" --cfg 0 1 3 7.5 \
        --checkpoint {run}/checkpoint.pt --out {run}/guidance.png
    Image(f"{run}/guidance.png")

Which patches read each token ([chapter 5](5-attention.md)). The number is the token's share of all
attention.

    !python sample.py "{one}" --cfg 3 --attention {run}/attention.png \
        --checkpoint {run}/checkpoint.pt --out {run}/one.png
    Image(f"{run}/attention.png")

One noise in 1, 2, 4, 8 and 50 steps ([chapter 2](2-sampling.md)). At $w = 1$ one step would aim at
the mean of the caption's images. Here $w = 3$: it aims three times as far from the mean of all
images.

    model, meta = flowclip.load_checkpoint(f"{run}/checkpoint.pt", flowclip.get_device())
    encoder = flowclip.CLIPTextEncoder(meta["clip"], meta["clip_weights"])
    shape, steps = meta["image_shape"], [1, 2, 4, 8, 50]
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    x = [
        flowclip.sample_text_conditional(model, encoder, one, shape, n, cfg_scale=3, noise=noise)
        for n in steps
    ]
    images = flowclip.denormalize_images(torch.cat(x))
    flowclip.save_picture(f"{run}/steps.png", images, len(steps), [f"S = {n}" for n in steps])
    Image(f"{run}/steps.png")
"""

END = """
## And now

Chapters 1 to 9 end in exercises: to break, to derive, to predict, to write. The tests judge [a file
of your own](README.md#judge-your-own), and [your own pictures](7-data.md#your-own-folder) are one
flag away.
"""


def chapter(path):
    """Its title, its aim, its experiment without what that prints, and a picture."""
    text = path.read_text()
    title, aim = text.split("\n\n")[:2]
    experiment = text.split("## Try it\n\n")[1].split("\n\n## ")[0].split("\n\n")
    code = [n for n, paragraph in enumerate(experiment) if paragraph.startswith("    ")]
    picture = PICTURES.get(path.stem, "").strip("\n")
    heading = f"## [{title.removeprefix('# ')}]({path.name})"
    return "\n\n".join([heading, aim, *experiment[: code[-1]], picture])


def cells_of(text):
    """Markdown -> cells: what is indented is code, the rest prose. Colab needs whole links."""
    paragraphs = text.strip("\n").split("\n\n")
    for is_code, part in groupby(paragraphs, lambda paragraph: paragraph.startswith("    ")):
        source = textwrap.dedent("\n\n".join(part))
        linked = re.sub(r"\]\((?!http)", f"]({FOLDER}", source)
        yield new_code_cell(source) if is_code else new_markdown_cell(linked)


def make_notebook():
    *chapters, shapes, emoji = map(chapter, sorted(DOCS.glob("[0-9]-*.md")))
    parts = [BEGIN, *chapters, MAIN_JOB, shapes, emoji, END]
    notebook = new_notebook(cells=[cell for part in parts for cell in cells_of(part)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # by default a random one
    return notebook


def run(notebook, folder):
    """Run all cells, from this folder on; an error in one of them ends it."""
    place = {"metadata": {"path": folder}}
    NotebookClient(
        notebook, resources=place, timeout=None, record_timing=False, coalesce_streams=True
    ).execute()


if __name__ == "__main__":
    notebook = make_notebook()
    run(notebook, DOCS)
    nbformat.write(notebook, DOCS / "tour.ipynb")
    print(DOCS / "tour.ipynb")
