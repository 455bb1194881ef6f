"""The pictures of draw_shapes.py and their judge: what is written is there, and is seen."""

import draw_shapes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import train

pytestmark = pytest.mark.heavy  # a study is no part of the specification

KINDS = draw_shapes.split_captions()
EVERY = sorted(caption for captions in KINDS.values() for caption in captions)


def test_what_is_held_out_is_never_trained_on():
    trained = {*KINDS["one"], *KINDS["two"]}
    assert not any(name in caption for caption in trained for name in draw_shapes.HELD_OUT)
    assert not trained & {*KINDS["two, new"]} and len(EVERY) == len({*EVERY})
    seen = {name for caption in trained for name in draw_shapes.parse(caption)[0]}
    for caption in KINDS["two, new"]:
        assert {*draw_shapes.parse(caption)[0]} <= seen, "both of its objects are known"
    for kind in ("one, held out", "two, one held out"):
        for caption in KINDS[kind]:
            assert sum(name in draw_shapes.HELD_OUT for name in draw_shapes.parse(caption)[0]) == 1


@pytest.mark.parametrize("caption", EVERY[::97])
def test_captions_are_read_back(caption):
    names, relation = draw_shapes.parse(caption)
    assert draw_shapes.caption_of(*names, relation=relation) == caption


@pytest.mark.parametrize("size", [24, 32])
def test_the_judge_is_right_on_real_pictures(size):
    rand, wrong = np.random.default_rng(1), []
    for i in range(500):
        caption = EVERY[i * 7 % len(EVERY)]
        if not draw_shapes.score(caption, draw_shapes.draw_caption(caption, size, rand))["all"]:
            wrong.append(caption)
    assert len(wrong) <= 5, wrong  # 99%


@given(st.integers(0, 10**6), st.sampled_from(["left of", "above"]))
def test_the_judge_sees_what_is_wrong(seed, relation):
    rand = np.random.default_rng(seed)
    there = draw_shapes.caption_of("red circle", "blue square", relation=relation)
    image = draw_shapes.draw_caption(there, 32, rand)

    def score(*names, relation=relation):
        right = draw_shapes.score(draw_shapes.caption_of(*names, relation=relation), image)
        return {name for name in draw_shapes.SCORES if right[name]}

    everything = {"object", "colour", "shape", "position", "binding", "all"}
    assert score("red circle", "blue square") == everything
    assert score("blue square", "red circle") == everything - {"position", "all"}
    assert score("red square", "blue circle") == everything - {"binding", "all"}
    assert score("red circle", "green square") == {"object", "shape", "position"}
    assert score("red circle", "blue triangle") == {"object", "colour", "position"}
    assert score("red circle", relation="") == set(), "something else is there"


def test_an_empty_image_and_noise_hold_nothing():
    assert draw_shapes.see(np.zeros((24, 24, 3), np.uint8)) == []
    gray = np.random.default_rng(0).integers(0, 60, (24, 24, 3)).astype(np.uint8)
    assert not draw_shapes.score("a red circle", gray)["object"]


def test_the_folder_is_read_by_the_trainer_and_comes_from_its_seed(tmp_path):
    for name in ("one", "two"):
        draw_shapes.write(tmp_path / name, 12, seed=3)
    draw_shapes.write(tmp_path / "three", 12, seed=4)
    data = {name: train.load_data(str(tmp_path / name)) for name in ("one", "two", "three")}
    images, labels, captions = data["one"]
    assert images.shape == (12, 3, 24, 24) and {*captions} <= {*KINDS["one"], *KINDS["two"]}
    assert (images == data["two"][0]).all() and (images != data["three"][0]).any()
    for image, label in zip(images, labels):
        assert draw_shapes.score(captions[label], image.permute(1, 2, 0).numpy())["all"]
