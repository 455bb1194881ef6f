"""What sample.py refuses before it draws, and how it names what it has drawn."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

import flowclip
import sample
from tests.conftest import flag_refused, one_line


@pytest.mark.parametrize("flags, named", [
    ("--cfg nan", "--cfg"), ("--cfg inf", "--cfg"), ("--cfg 1e39", "--cfg"), ("--cfg", "--cfg"),
    ("--n -1", "--n"), ("--n 0", "--n"), ("--steps 0", "--steps"), ("--out x", "x.png"),
    ("--attention a.txt", "a.png"), ("--out a.png --attention a.png", "a.png"),
])  # fmt: skip
def test_what_draws_nothing_is_refused_at_once(command, monkeypatch, flags, named):
    monkeypatch.setattr(sample, "load", None)
    one_line(command(sample, "x", *flags.split()), named)


def test_another_solver_is_refused_by_the_flag(command):
    flag_refused(command(sample, "x", "--solver", "rk4"), "rk4", "heun")


PROMPTS = ["a dog", "A dog!", "犬", "猫", "собака", "a/b", "..", "", 300 * "a", 300 * "a" + "b"]


def test_each_image_has_a_name_of_its_own():
    config = sample.Config(save_dir=Path("d"))
    settings = [
        replace(config, seed=seed, solver=solver, steps=steps)
        for seed in (0, 1) for solver in ("euler", "heun") for steps in (1, 11)
    ]  # fmt: skip
    paths = [
        sample.image_path(each, prompt, w, n)
        for each, prompt in itertools.product(settings, PROMPTS)
        for n in (0, 1) for w in (1.0, 1.0000001, 7.5)
    ]  # fmt: skip
    assert len(set(paths)) == len(paths)
    assert all(path.parent == Path("d") and len(path.name.encode()) < 255 for path in paths)
    assert "собака" in str(sample.image_path(config, "собака", 1.0, 0))


def test_nothing_is_overwritten(command, monkeypatch, tmp_path):
    monkeypatch.setattr(sample, "load", lambda *_: (None, None, {"image_shape": (1, 8, 8)}))
    monkeypatch.setattr(flowclip, "sample_text_conditional", None)
    path = sample.image_path(sample.Config(save_dir=tmp_path), "x", 7.5, 0)
    path.write_text("mine")
    one_line(command(sample, "x", "--save-dir", tmp_path), path.name)
    assert path.read_text() == "mine"
