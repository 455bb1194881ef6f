"""The course as a notebook: python docs/build/tour.py writes docs/tour.ipynb, with what it shows.

The experiments of the chapters, in their order, then the main job: CIFAR-10 where a GPU is, else
the demo's digits. Needs docs/requirements-test.txt, and runs for some minutes.
"""

import textwrap
from itertools import groupby
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

DOCS = Path(__file__).parents[1]

BEGIN = """
# A tour of flowclip

How a sentence becomes a picture. First the experiments of [the chapters](README.md): the method
(what is trained, how an image is drawn, what guidance does), then its parts (text, attention,
network, data), then sentences about two objects. The main job comes last. Change what you like and
run it again. The mathematics is in [flowclip.py](../flowclip.py).

On your machine: `pip install -r requirements.txt notebook`, then `jupyter notebook
docs/tour.ipynb`.

On Colab: choose a GPU (Runtime, Change runtime type) and remove the `#` from the two lines that
begin with it. **flowclip has no public address yet**: replace ADDRESS by that of your own copy.

    # !git clone ADDRESS flowclip
    # !pip install -q -r flowclip/requirements.txt

Then, wherever you are:

    import os, warnings
    from IPython.display import Image
    for folder in ("flowclip", ".."):  # the clone on Colab; else a notebook starts in docs/
        if os.path.exists(f"{folder}/flowclip.py"):
            os.chdir(folder)
    warnings.filterwarnings("ignore", message="IProgress")  # a plain progress bar will do
    warnings.showwarning = lambda message, *_: print(f"note: {message}")
    import flowclip
"""

MAIN_JOB = r"""
## The main job

On a GPU this is the documented job: CIFAR-10 with OpenAI's text weights, 30 epochs. It downloads
170 MB of images and 600 MB of CLIP; how long it takes on Colab's GPU has not been measured.
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
not read. At 1 it is read, but a quarter to three quarters of our draws missed it. Above 1 it is
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

## And now

Chapters 1 to 7 end in exercises: one to break, one to derive, one to predict, one to write. The
tests judge [a file of your own](README.md#judge-your-own), and [your own
pictures](7-data.md#your-own-folder) are one flag away.
"""


def chapter(path):
    """Its title, its aim, and its experiment without what that prints."""
    text = path.read_text()
    title, aim = text.split("\n\n")[:2]
    experiment = text.split("## Try it\n\n")[1].split("\n\n## ")[0].split("\n\n")
    code = [n for n, paragraph in enumerate(experiment) if paragraph.startswith("    ")]
    return [f"## [{title.removeprefix('# ')}]({path.name})", aim, *experiment[: code[-1]]]


def cells_of(text):
    """Markdown -> cells: what is indented is code, what stands between is prose."""
    paragraphs = text.strip("\n").split("\n\n")
    for is_code, part in groupby(paragraphs, lambda paragraph: paragraph.startswith("    ")):
        source = textwrap.dedent("\n\n".join(part))
        yield new_code_cell(source) if is_code else new_markdown_cell(source)


def make_notebook():
    chapters = sum(map(chapter, sorted(DOCS.glob("[0-9]-*.md"))), [])
    text = "\n\n".join([BEGIN.strip("\n"), *chapters, MAIN_JOB.strip("\n")])
    notebook = new_notebook(cells=[*cells_of(text)])
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
