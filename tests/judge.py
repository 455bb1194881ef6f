"""Are the digits that the demo draws the ones that its prompts name? python tests/judge.py runs/demo/checkpoint.pt

The judge is a support vector machine that has learned from half of scikit-learn's real digits; its score on the other
half is printed first. The control shuffles the prompts: a judge that is not fooled says about 10%.
"""

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

sys.path.insert(0, str(Path(__file__).parent.parent))
import flowclip


def fit_judge():
    """-> (the machine, its accuracy on the real digits that it has not seen)."""
    digits = load_digits()
    train, test, y_train, y_test = train_test_split(digits.data / 16, digits.target, test_size=0.5, random_state=0)
    judge = SVC(C=10, gamma=0.05).fit(train, y_train)
    return judge, judge.score(test, y_test)


def judge_checkpoint(path, count=200, cfg=3.0, steps=50, seed=0):
    """-> dict of accuracies in [0, 1]: real (held-out digits), drawn (prompt kept), control (prompts shuffled)."""
    judge, real = fit_judge()
    device = flowclip.get_device()
    model, meta = flowclip.load_checkpoint(path, device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the tower is untrained
        encoder = flowclip.CLIPTextEncoder(meta["clip"], meta["clip_weights"], device)
    names = np.arange(count) % 10
    rand = torch.Generator().manual_seed(seed)
    with flowclip.autocast(device):
        x = flowclip.sample_text_conditional(
            model, encoder, [meta["captions"][n] for n in names], meta["image_shape"], steps, cfg, generator=rand
        )
    seen = judge.predict(flowclip.denormalize_images(x).flatten(1).cpu().numpy() / 255)
    shuffled = np.random.default_rng(seed).permutation(names)
    return {"real": real, "drawn": float((seen == names).mean()), "control": float((seen == shuffled).mean())}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--n", type=int, default=200, help="draws (200)")
    parser.add_argument("--cfg", type=float, nargs="+", default=[3.0], help="guidance scales (3)")
    parser.add_argument("--steps", type=int, default=50, help="Euler steps (50)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-least", type=float, default=0.0, help="exit with status 1 if fewer prompts are kept")
    return parser.parse_args()


if __name__ == "__main__":
    args = parse_args()
    for cfg in args.cfg:
        result = judge_checkpoint(args.checkpoint, args.n, cfg, args.steps, args.seed)
        print(
            f"w = {cfg:g}: {result['drawn']:.1%} of {args.n} draws are the digit of their prompt "
            f"(shuffled prompts {result['control']:.1%}; the judge knows {result['real']:.1%} of held-out real digits)"
        )
        if result["drawn"] < args.at_least:
            sys.exit(1)
