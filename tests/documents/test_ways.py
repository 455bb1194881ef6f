"""label_vs_tokens.py and train_clip.py: three models that hear a caption; a CLIP trained here."""

import draw_shapes
import label_vs_tokens
import numpy as np
import pytest
import torch
import train_clip

import flowclip

pytestmark = pytest.mark.heavy  # a study is no part of the specification

CAPTIONS = draw_shapes.split_captions()["two"][:6]
NEW = draw_shapes.split_captions()["two, new"][0]


def hear(way, encoder, caption):
    """-> (velocity of a fixed noise at t = 0.5, the model) of an untrained model of this way."""
    torch.manual_seed(0)
    encode, model = label_vs_tokens.make(way, encoder, CAPTIONS, size=8)
    torch.nn.init.normal_(model.final_linear.weight)  # else every velocity is 0
    for block in model.blocks:
        torch.nn.init.normal_(block.norm1.linear.weight, std=0.1)  # else c is not heard
    context, mask = encode([caption])
    return model(torch.ones(1, 3, 8, 8), torch.tensor([0.5]), context, mask), model


@pytest.mark.parametrize("way", label_vs_tokens.WAYS)
def test_each_way_hears_the_caption(way, small_encoder):
    (first, _), (again, _), (other, _) = (hear(way, small_encoder, CAPTIONS[k]) for k in (0, 0, 1))
    assert torch.equal(first, again) and not torch.allclose(first, other, atol=1e-4)


@pytest.mark.parametrize("way", label_vs_tokens.WAYS)
def test_a_class_alone_cannot_be_asked_for_a_new_sentence(way, small_encoder):
    if way == "class":
        with pytest.raises(KeyError, match=NEW):
            hear(way, small_encoder, NEW)
    else:
        hear(way, small_encoder, NEW)


def test_the_pooled_way_has_one_vector_and_no_attention_to_text(small_encoder):
    encode, model = label_vs_tokens.make("pooled", small_encoder, CAPTIONS, size=8)
    context, mask = encode([CAPTIONS[0], ""])
    _, pooled = small_encoder.encode([CAPTIONS[0], ""], return_pooled=True)
    assert torch.equal(context[:, 0], pooled) and context.shape[1] == 1 and mask.all()
    assert not any(hasattr(block, "cross_attn") for block in model.blocks)


def test_no_batch_of_pairs_has_a_caption_twice():
    labels = np.array([0, 0, 0, 1, 1, 2, 3, 3])
    for rows in train_clip.batches(labels, 20, batch_size=3, seed=0):
        assert len({*labels[rows]}) == 3
    every = [row for rows in train_clip.batches(labels, 20, batch_size=4, seed=0) for row in rows]
    assert {*every} == {*range(8)}, "each picture has its turn"


def test_a_small_clip_learns_pairs_and_is_read_by_the_encoder(tmp_path):
    rand = np.random.default_rng(0)
    drawn = np.stack([draw_shapes.draw_caption(caption, 24, rand) for caption in CAPTIONS])
    images, labels = torch.from_numpy(drawn).permute(0, 3, 1, 2), torch.arange(len(CAPTIONS))
    torch.manual_seed(0)
    pairs = train_clip.Pairs("small-clip", CAPTIONS, 24)
    encoder = flowclip.CLIPTextEncoder("small-clip", "untrained")
    vectors = pairs.text_vectors(CAPTIONS)
    _, pooled = encoder.encode(CAPTIONS, return_pooled=True)
    torch.testing.assert_close(vectors, pooled @ pairs.text_projection)

    loss = pairs(flowclip.normalize_images(images), CAPTIONS).item()
    train_clip.fit(pairs, images, labels, CAPTIONS, steps=8, lr=1e-4, warmup=1)
    assert pairs(flowclip.normalize_images(images), CAPTIONS).item() < loss / 2

    torch.save(pairs.tower.state_dict(), tmp_path / "clip.pt")
    read = flowclip.CLIPTextEncoder("small-clip", tmp_path / "clip.pt")
    _, pooled = read.encode(CAPTIONS, return_pooled=True)
    torch.testing.assert_close(
        pairs.text_vectors(CAPTIONS), pooled @ pairs.text_projection, atol=1e-4, rtol=1e-4
    )
