"""Chapter 1: the CLIP text encoder."""

import copy
import os
import warnings

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import flowclip
from tests import strategies as draw

GOLDEN = {
    "a photo of a cat": [320, 1125, 539, 320, 2368],
    "a photo of a dog": [320, 1125, 539, 320, 1929],
    "Hello World!": [3306, 1002, 256],
    "35mm photography": [274, 276, 2848, 2108],
    "café über naïve": [15304, 6522, 1516, 1097, 35689, 563],
    "😀 red car": [7334, 736, 1615],
    "hello-world, 3.14 (test)": [3306, 268, 1002, 267, 274, 269, 272, 275, 263, 1628, 264],
}


@pytest.mark.spec("CLIP-1")
@pytest.mark.parametrize("prompt", GOLDEN)
def test_golden_tokens(encoder, prompt):
    ids = encoder.tokenize(prompt)
    expected = [49406, *GOLDEN[prompt], 49407]
    assert ids.shape == (1, 77) and ids[0].tolist() == expected + [0] * (77 - len(expected))


def ids_between(encoder, prompt):
    """The ids of a prompt without BOS, EOS and padding."""
    row = encoder.tokenize(prompt)[0].tolist()
    return row[1 : row.index(49407)]


@pytest.mark.spec("CLIP-1")
@given(draw.words)
def test_words_are_cut_one_by_one_and_read_back(small_encoder, words):
    prompt = " ".join(words)
    ids = [piece for word in words for piece in ids_between(small_encoder, word)]
    row = small_encoder.tokenize(prompt)
    assert row.shape == (1, 77) and row[0].tolist() == [49406, *ids, 49407] + [0] * (75 - len(ids))
    assert torch.equal(
        small_encoder.tokenize([prompt.upper(), f"  {prompt} "]), row.expand(2, -1)
    ), "case, and blanks around"
    if prompt.isascii():  # (elsewhere a token may be a part of a letter)
        assert "".join(small_encoder.tokens(prompt)) == f"[BOS]{''.join(words)}[EOS]"


def test_tokens_are_readable(encoder):
    assert encoder.tokens("a red car") == ["[BOS]", "a", "red", "car", "[EOS]"]
    assert encoder.tokens("") == ["[BOS]", "[EOS]"]


@pytest.mark.spec("CLIP-2")
@given(st.sampled_from(["dog", "!", "xylophone", "猫"]), st.integers(60, 90))
@example("dog", 75)
@example("dog", 76)
@example("dog", 77)
def test_long_prompts_are_cut_with_a_warning(small_encoder, word, count):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ids = small_encoder.tokenize(" ".join(count * [word]))[0]
    pieces = count * ids_between(small_encoder, word)
    kept = pieces[:75]
    assert ids.tolist() == [49406, *kept, 49407] + [0] * (75 - len(kept))
    assert any("cut at 77" in str(w.message) for w in caught) == (len(pieces) > 75)


@pytest.mark.spec("CLIP-3")
@given(
    st.lists(
        draw.prompts | st.integers(60, 90).map(lambda count: "!= " * count), min_size=1, max_size=3
    )
)
@example(["", "a cat", "hi!; there", "!==", "a!=b", 90 * "dog "])
def test_mask_is_found_by_the_place_of_eos(small_encoder, texts):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ids, (_, mask) = small_encoder.tokenize(texts), small_encoder(texts)
    assert mask.dtype == torch.bool and len(mask) == len(texts)
    for text, row, real in zip(texts, ids.tolist(), mask.tolist()):
        assert real == [m <= row.index(49407) for m in range(len(real))] and sum(real) > 1, text
    assert 0 in ids_between(small_encoder, "hi!; there"), "there is a real token of id 0"


@pytest.mark.spec("CLIP-4")
def test_shape_dtype_and_final_layernorm(encoder):
    Z = encoder.encode(["a cat", "two dogs"])
    assert Z.shape == (2, 77, 512) and Z.dtype == torch.float32
    norm = encoder.tower.ln_final  # at the start its weight is 1 and its bias 0
    assert norm.weight.eq(1).all() and norm.bias.eq(0).all()
    assert Z.mean(-1).abs().max() < 1e-5
    assert (Z[:, :4].var(-1, unbiased=False) - 1).abs().max() < 1e-3
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(encoder.encode(["a cat", "two dogs", "a"])[:2], Z)


@pytest.mark.spec("CLIP-4", "CLIP-13")
@given(st.lists(draw.prompts, min_size=1, max_size=3))
@example(["", "a!=b", 75 * "dog "])
def test_real_tokens_are_those_of_the_whole_tower_and_padding_is_zero(small_encoder, texts):
    Z, mask = small_encoder(texts)
    ids, tower = small_encoder.tokenize(texts), copy.copy(small_encoder.tower)
    tower.output_tokens = True  # open_clip's own forward pass, over all 77 places
    with torch.no_grad():
        whole = tower(ids)[1][:, : mask.shape[1]]
    torch.testing.assert_close(Z[mask], whole[mask], atol=1e-4, rtol=1e-4)
    assert Z[~mask].eq(0).all()
    layers, places = small_encoder.tower.transformer.resblocks, set()
    watch = lambda _, inputs, out: places.add(out.shape[1])  # noqa: E731
    hooks = [layer.register_forward_hook(watch) for layer in layers]
    try:
        small_encoder(texts)
    finally:
        for hook in hooks:
            hook.remove()
    longest = max(row.index(49407) for row in ids.tolist()) + 1
    assert places == {longest}, "no place after the longest prompt is computed"


@pytest.mark.spec("CLIP-5")
@given(draw.prompts, draw.prompts, draw.prompts)
def test_a_later_token_never_changes_an_earlier_vector(small_encoder, start, one, other):
    texts = [f"{start} {one}", f"{start} {other}"]
    ids, Z = small_encoder.tokenize(texts), small_encoder.encode(texts)
    same = int((ids[0] == ids[1]).long().cumprod(0).sum())  # so many ids at the front are equal
    torch.testing.assert_close(Z[0, :same], Z[1, :same], atol=1e-4, rtol=1e-4)
    if same < 77:
        assert (Z[0, same] - Z[1, same]).abs().max() > 0.01, (
            "the first token that differs has another vector"
        )


@pytest.mark.spec("CLIP-6")
@given(st.lists(draw.prompts, min_size=2, max_size=4), st.randoms())
def test_each_prompt_is_encoded_by_itself(small_encoder, texts, random):
    order = list(range(len(texts)))
    random.shuffle(order)
    Z, Z_permuted = small_encoder.encode(texts), small_encoder.encode([texts[i] for i in order])
    torch.testing.assert_close(Z_permuted, Z[order], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(small_encoder.encode(texts[0])[0], Z[0], atol=1e-4, rtol=1e-4)


@pytest.mark.spec("CLIP-7")
@given(st.lists(draw.prompts, min_size=1, max_size=4))
@example(["", "a cat", "hi!; there"])
def test_pooled_is_z_at_eos(small_encoder, texts):
    Z, pooled = small_encoder.encode(texts, return_pooled=True)
    assert pooled.shape == (len(texts), 256)
    for i, ids in enumerate(small_encoder.tokenize(texts).tolist()):
        assert torch.equal(pooled[i], Z[i, ids.index(49407)]), texts[i]


@pytest.mark.spec("CLIP-8")
def test_null_text_is_bos_eos_and_not_zeros(encoder):
    Z, mask = encoder("")
    assert encoder.tokenize("")[0, :3].tolist() == [49406, 49407, 0]
    assert mask.sum() == 2 and Z[0, :2].abs().amax(-1).min() > 0.1


@pytest.mark.spec("CLIP-9")
def test_frozen(encoder):
    assert not any(p.requires_grad for p in encoder.parameters())
    holder = torch.nn.ModuleList([encoder]).train()
    assert holder.training and not any(module.training for module in encoder.modules())
    assert not encoder("a cat")[0].requires_grad and not encoder.encode("a cat").requires_grad


@pytest.mark.spec("CLIP-10")
def test_quickgelu(encoder, small_encoder):
    x = torch.linspace(-3, 3, 7)
    plain = small_encoder.tower.transformer.resblocks[
        0
    ].mlp.gelu  # ViT-S-32-alt has the ordinary one
    torch.testing.assert_close(plain(x), x * 0.5 * (1 + torch.erf(x / 2**0.5)))
    activation = encoder.tower.transformer.resblocks[0].mlp.gelu
    torch.testing.assert_close(activation(x), x / (1 + torch.exp(-1.702 * x)))
    with pytest.raises(ValueError, match="quickgelu"):
        flowclip.CLIPTextEncoder("ViT-B-32", "openai")


@pytest.mark.spec("CLIP-11")
@pytest.mark.parametrize("kind", ["tower.pt", "half tower.pt", "clip.pt", "custom.safetensors"])
def test_weights_by_path_give_the_same_vectors(small_encoder, tmp_path, kind):
    from safetensors.torch import save_file

    encoder = small_encoder
    state = {
        name: tensor + 0.01 * torch.randn_like(tensor)
        for name, tensor in encoder.tower.state_dict().items()
    }
    vision = {"visual.conv1.weight": torch.zeros(2), "logit_scale": torch.zeros(())}
    path = tmp_path / kind
    if kind.startswith("half"):
        state = {name: tensor.half() for name, tensor in state.items()}
    if kind.endswith("tower.pt"):
        torch.save(state, path)
    elif kind == "clip.pt":
        torch.save({"state_dict": state | vision}, path)
    else:
        save_file({f"text.{name}": tensor for name, tensor in state.items()} | vision, path)
    loaded, expected = flowclip.CLIPTextEncoder(encoder.model_name, path), copy.deepcopy(encoder)
    expected.tower.load_state_dict(state)
    Z = loaded.encode("a red car")
    assert torch.equal(Z, expected.encode("a red car")) and Z.dtype == torch.float32
    assert (loaded.model_name, loaded.pretrained) == (encoder.model_name, str(path))
    assert not torch.equal(Z, encoder.encode("a red car"))


@pytest.mark.spec("CLIP-11")
def test_weights_that_do_not_fit_are_refused(small_encoder, tmp_path):
    state = small_encoder.tower.state_dict()
    missing, reshaped = dict(state), state | {"text_projection": torch.zeros(3, 3)}
    del missing["ln_final.weight"]
    for name, content in {"missing": missing, "reshaped": reshaped, "list": [1, 2]}.items():
        torch.save(content, tmp_path / name)
        reason = {"missing": "ln_final.weight", "reshaped": "text_projection"}.get(name, "")
        with pytest.raises(ValueError, match=rf"(?s){name} holds no text tower.*{reason}"):
            flowclip.CLIPTextEncoder("ViT-S-32-alt", tmp_path / name)
    (tmp_path / "text").write_text("not a checkpoint")
    with pytest.raises(ValueError, match="holds no text tower"):
        flowclip.CLIPTextEncoder("ViT-S-32-alt", str(tmp_path / "text"))
    with pytest.raises(ValueError, match="nothing.pt holds no text tower .*openai.* No such file"):
        flowclip.CLIPTextEncoder(pretrained=str(tmp_path / "nothing.pt"))
    with pytest.raises(ValueError, match="'ViT-B-32-quickgel' is no model"):
        flowclip.CLIPTextEncoder("ViT-B-32-quickgel")


@pytest.mark.spec("CLIP-12")
def test_untrained_is_reproducible_and_leaves_the_rng(encoder):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with pytest.warns(UserWarning, match="untrained"):
        again = flowclip.CLIPTextEncoder(pretrained="untrained")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(again.encode("a red car"), encoder.encode("a red car"))
    dog, truck = encoder.encode(["a dog", "a truck"], return_pooled=True)[1]
    assert torch.cosine_similarity(dog, truck, dim=0) < 0.99, "it tells prompts apart"


@pytest.mark.spec("CLIP-13")
def test_trim_keeps_the_longest_prompt(encoder):
    texts = ["", "a photo of a cat", "a cat"]
    Z, mask = encoder.encode(texts), torch.arange(77) < torch.tensor([[2], [7], [4]])
    short, short_mask = flowclip.trim_context(Z, mask)
    assert torch.equal(short, Z[:, :7]) and torch.equal(short_mask, mask[:, :7])
    mask[0, 8] = True  # a real token after masked ones counts, too
    assert flowclip.trim_context(Z, mask)[0].shape == (3, 9, 512)


@pytest.mark.spec("CLIP-14")
def test_golden_vectors_of_the_real_weights(monkeypatch):
    if not os.environ.get("FLOWCLIP_DOWNLOAD"):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the cache alone
    try:
        encoder = flowclip.CLIPTextEncoder()
    except ConnectionError:
        pytest.skip(
            "OpenAI's weights are not in the cache; FLOWCLIP_DOWNLOAD=1 pytest fetches 600 MB"
        )
    Z, pooled = encoder.encode(["a photo of a cat", ""], return_pooled=True)
    rows = [[-0.5844, 0.3685, -2.0744], [-0.9600, 1.0018, -0.2415], [-0.5957, -0.1719, 0.4689]]
    torch.testing.assert_close(Z[0, 1:4, 1:4], torch.tensor(rows), atol=2e-4, rtol=0)
    torch.testing.assert_close(
        pooled[0, 1:4], torch.tensor([0.1658, 0.8876, 10.6313]), atol=2e-4, rtol=0
    )
    assert torch.cosine_similarity(pooled[:1], pooled[1:]).item() == pytest.approx(0.653, abs=1e-3)


def test_a_failed_download_is_quick_and_says_what_is_missing(monkeypatch):
    import huggingface_hub
    import open_clip

    def refuse(*args, **kwargs):
        raise OSError("no network in this test")

    monkeypatch.setattr(huggingface_hub, "get_session", refuse)
    seen, constants = [], huggingface_hub.constants
    cache = lambda source: seen.append(constants.HF_HUB_OFFLINE) or refuse()  # noqa: E731
    monkeypatch.setattr(open_clip, "download_pretrained", cache)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ConnectionError, match="'openai' of ViT-B-32-quickgelu"):
        flowclip.CLIPTextEncoder()
    assert seen == [True], "without a network the cache alone is asked"
    with pytest.raises(ConnectionError, match="'laion2b_s34b_b79k' of ViT-B-32"):
        flowclip.CLIPTextEncoder("ViT-B-32", "laion2b_s34b_b79k")  # no QuickGELU on either side


@pytest.mark.spec("CLIP-11")
def test_a_download_is_loaded(encoder, monkeypatch, tmp_path):
    import huggingface_hub
    import open_clip

    torch.save(encoder.tower.state_dict(), tmp_path / "download.pt")
    asked = []

    class Session:
        def head(self, *args, **given):
            asked.append((args, given))

    def download(cfg):
        asked.append((cfg["hf_hub"], huggingface_hub.constants.HF_HUB_OFFLINE))
        return tmp_path / "download.pt"

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    monkeypatch.setattr(open_clip, "download_pretrained", download)
    loaded = flowclip.CLIPTextEncoder()
    hub = ((huggingface_hub.constants.ENDPOINT,), {"timeout": 10})
    assert asked == [hub, ("timm/vit_base_patch32_clip_224.openai/", False)]
    assert torch.equal(loaded.encode("a red car"), encoder.encode("a red car"))


def test_a_call_is_no_longer_than_its_longest_prompt(small_encoder):
    """What the samplers and the trainer read; encode() pads to all 77 places."""
    Z, mask = small_encoder(["a red car", "a car"])
    assert Z.shape == (2, 5, 256) and mask.tolist() == [5 * [True], 4 * [True] + [False]]
    padded = small_encoder.encode(["a red car", "a car"])
    assert torch.equal(padded[:, :5], Z) and padded[:, 5:].eq(0).all() and padded.shape[1] == 77
