"""Chapter 4: the CLIP text encoder."""

import copy
import math
import os
import warnings

import huggingface_hub
import open_clip
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import flowclip
from tests.spec import oracles
from tests.spec import strategies as draw
from tests.spec.compare import close, equal

GOLDEN = {
    "a photo of a cat": [320, 1125, 539, 320, 2368],
    "a photo of a dog": [320, 1125, 539, 320, 1929],
    "Hello World!": [3306, 1002, 256],
    "35mm photography": [274, 276, 2848, 2108],
    "café über naïve": [15304, 6522, 1516, 1097, 35689, 563],
    "😀 red car": [7334, 736, 1615],
    "hello-world, 3.14 (test)": [3306, 268, 1002, 267, 274, 269, 272, 275, 263, 1628, 264],
}


def padded(ids):
    return ids + [0] * (77 - len(ids))


@pytest.mark.spec("CLIP-1")
@pytest.mark.parametrize("prompt", GOLDEN)
def test_golden_tokens(encoder, prompt):
    expected = [49406, *GOLDEN[prompt], 49407]
    equal(f"the ids of {prompt!r}", encoder.tokenize(prompt), [padded(expected)])


def ids_between(encoder, prompt):
    """The ids of a prompt without BOS, EOS and padding."""
    row = encoder.tokenize(prompt)[0].tolist()
    return row[1 : row.index(49407)]


@pytest.mark.spec("CLIP-1")
@given(draw.words)
def test_words_are_cut_one_by_one_whatever_their_case(small_encoder, words):
    prompt = " ".join(words)
    ids = [piece for word in words for piece in ids_between(small_encoder, word)]
    row = padded([49406, *ids, 49407])
    found = small_encoder.tokenize([prompt, prompt.upper()])
    equal(f"the ids of {prompt!r} and of its capitals", found, [row, row])


@given(draw.words)
def test_tokens_are_readable(small_encoder, words):
    prompt = " ".join(words)
    row = small_encoder.tokenize(prompt)
    assert torch.equal(small_encoder.tokenize(f"  {prompt} "), row), "blanks around"
    if prompt.isascii():  # (elsewhere a token may be a part of a letter)
        assert "".join(small_encoder.tokens(prompt)) == f"[BOS]{''.join(words)}[EOS]"


def test_tokens_of_a_red_car(encoder):
    assert encoder.tokens("a red car") == ["[BOS]", "a", "red", "car", "[EOS]"]
    assert encoder.tokens("") == ["[BOS]", "[EOS]"]


@pytest.mark.spec("CLIP-2")
@given(st.sampled_from(["dog", "!", "xylophone", "猫"]), st.integers(60, 90))
@example("dog", 74)
@example("dog", 75)
@example("dog", 76)
def test_long_prompts_are_cut_with_a_warning(small_encoder, word, count):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ids = small_encoder.tokenize(" ".join(["cat", *(count - 1) * [word]]))[0]
    pieces = ids_between(small_encoder, "cat") + (count - 1) * ids_between(small_encoder, word)
    expected = [49406, *pieces[:75], 49407]
    assert len(ids) == 77, f"{len(ids)} ids, expected 77"
    equal(f"the ids of a cat and {count - 1} times {word!r}", ids[: len(expected)], expected)
    said = [str(warning.message) for warning in caught]
    assert bool(said) == (len(pieces) > 75), f"{len(pieces)} tokens, and the warnings are {said}"


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
    for text, row, real in zip(texts, ids.tolist(), mask):
        expected = [m <= row.index(49407) for m in range(len(real))]
        equal(f"the mask of {text!r}", real, expected)


@pytest.mark.spec("CLIP-4")
def test_shape_and_float32(encoder):
    texts = ["a cat", "two dogs"]
    Z = encoder.encode(texts)
    with torch.autocast("cpu", torch.bfloat16):
        again, (called, mask) = encoder.encode(texts), encoder(texts)
    for found in (Z, again, called):
        assert found.dtype == torch.float32, f"Z is in {found.dtype}"
    sizes = list(Z.shape)
    assert sizes == [2, 77, 512], f"encode gives {sizes}, expected [2, 77, 512]"
    close("Z where bfloat16 is asked for", again, Z)
    close("Z of a call", called[mask], Z[:, : mask.shape[1]][mask])


@pytest.mark.spec("CLIP-4")
@given(st.lists(draw.prompts, min_size=1, max_size=3))
@example(["", "a!=b", 75 * "dog "])
def test_real_tokens_are_those_of_the_whole_tower_and_padding_is_zero(small_encoder, texts):
    (Z, mask), padded_Z = small_encoder(texts), small_encoder.encode(texts)
    ids, tower = small_encoder.tokenize(texts), copy.copy(small_encoder.tower)
    tower.output_tokens = True  # open_clip's own forward pass, over all 77 places
    with torch.no_grad():
        whole = tower(ids)[1][:, : mask.shape[1]]
    close("Z at the real tokens", Z[mask], whole[mask], atol=1e-4, rtol=1e-4)
    equal("Z at the padding", Z[~mask], torch.zeros_like(Z[~mask]))
    expected = torch.nn.functional.pad(Z, (0, 0, 0, 77 - Z.shape[1]))
    close("what encode gives", padded_Z, expected)


@pytest.mark.spec("CLIP-13")
@given(st.lists(draw.prompts, min_size=1, max_size=3))
@example(["", "a!=b", 75 * "dog "])
def test_no_place_after_the_longest_prompt_is_computed(small_encoder, texts):
    layers, places = small_encoder.tower.transformer.resblocks, set()
    watch = lambda _, inputs, out: places.add(out.shape[1])  # noqa: E731
    hooks = [layer.register_forward_hook(watch) for layer in layers]
    try:
        Z, mask = small_encoder(texts)
    finally:
        for hook in hooks:
            hook.remove()
    longest = max(row.index(49407) for row in small_encoder.tokenize(texts).tolist()) + 1
    assert max(places) == longest, f"the layers saw {places} places, the longest has {longest}"
    sizes = list(Z.shape), list(mask.shape)
    expected = [len(texts), longest, 64], [len(texts), longest]
    assert sizes == expected, f"Z and mask have the shapes {sizes}, expected {expected}"


@pytest.mark.spec("CLIP-5")
@given(draw.prompts, draw.prompts, draw.prompts)
def test_a_later_token_never_changes_an_earlier_vector(small_encoder, start, one, other):
    texts = [f"{start} {one}", f"{start} {other}"]
    ids, Z = small_encoder.tokenize(texts), small_encoder.encode(texts)
    same = int((ids[0] == ids[1]).long().cumprod(0).sum())  # so many ids at the front are equal
    close(f"Z at {same} tokens before another one", Z[1, :same], Z[0, :same], 1e-4, 1e-4)


@pytest.mark.spec("CLIP-6")
@given(st.lists(draw.prompts, min_size=2, max_size=4), st.randoms())
def test_each_prompt_is_encoded_by_itself(small_encoder, texts, random):
    order = list(range(len(texts)))
    random.shuffle(order)
    Z, mask = small_encoder(texts)
    Z_permuted, _ = small_encoder([texts[i] for i in order])
    alone, _ = small_encoder(texts[:1])
    length = int(mask[0].sum())
    permuted = Z_permuted[mask[order]]
    close(f"Z in the order {order}", permuted, Z[order][mask[order]], atol=1e-4, rtol=1e-4)
    close("Z of the first alone", alone[0, :length], Z[0, :length], atol=1e-4, rtol=1e-4)


@pytest.mark.spec("CLIP-7")
@given(st.lists(draw.prompts, min_size=1, max_size=4))
@example(["", "a cat", "hi!; there"])
def test_pooled_is_z_at_eos(small_encoder, texts):
    Z, pooled = small_encoder.encode(texts, return_pooled=True)
    for i, ids in enumerate(small_encoder.tokenize(texts).tolist()):
        equal(f"the pooled vector of {texts[i]!r}", pooled[i], Z[i, ids.index(49407)])


@pytest.mark.spec("CLIP-8")
def test_null_text_is_bos_eos_and_not_zeros(encoder):
    Z, mask = encoder("")
    assert mask.sum() == 2, f"a mask of {mask.sum()} tokens, expected BOS and EOS"
    cat, beside = encoder(["a cat", ""])[0][:, :2]
    close("the null text's vectors beside another text", beside, Z[0, :2], atol=1e-4)
    close("its BOS, which is that of any text,", Z[0, 0], cat[0], atol=1e-4)
    largest = Z[0, :2].abs().amax(-1)
    assert largest.min() > 0.1, f"the largest numbers of its two vectors are {largest.tolist()}"


@pytest.mark.spec("CLIP-9")
def test_frozen(encoder):
    asks = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    assert not asks, f"{len(asks)} parameters ask for a gradient: {asks[:2]}"
    torch.nn.ModuleList([encoder]).train()
    wakes = [name for name, module in encoder.named_modules() if module.training]
    assert not wakes, f"after train(), {len(wakes)} modules are in train mode: {wakes[:2]}"
    graph = encoder("a cat")[0].requires_grad or encoder.encode("a cat").requires_grad
    assert not graph, "Z carries a graph"


def refuses(error, *arguments):
    """Whatever the words."""
    encoder = flowclip.CLIPTextEncoder
    try:
        encoder(*arguments)
    except NotImplementedError:
        raise
    except error:
        return
    raise AssertionError(f"CLIPTextEncoder{arguments} was not refused")


@pytest.mark.spec("CLIP-10")
def test_quickgelu(encoder, small_encoder):
    x = torch.linspace(-3, 3, 7)
    plain = small_encoder.tower.transformer.resblocks[0].mlp.gelu  # small-clip has the ordinary one
    close("the plain activation", plain(x), x * 0.5 * (1 + torch.erf(x / 2**0.5)))
    activation = encoder.tower.transformer.resblocks[0].mlp.gelu
    close("the activation", activation(x), x / (1 + torch.exp(-1.702 * x)))
    refuses(ValueError, "ViT-B-32", "openai")  # and not for want of a network


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
    equal("Z by loaded weights", loaded.encode("a red car"), expected.encode("a red car"))


def by_the_names_of_transformers(state):
    """The weights of a tower as Hugging Face's CLIPTextModel calls them.

    It has no projection into the space of images, and a tower of open_clip may have one.
    """
    renamed = {
        "embeddings.token_embedding.weight": state["token_embedding.weight"],
        "embeddings.position_embedding.weight": state["positional_embedding"],
    }
    for kind in ("weight", "bias"):
        renamed[f"final_layer_norm.{kind}"] = state[f"ln_final.{kind}"]
    layers = {int(name.split(".")[2]) for name in state if "resblocks" in name}
    for n in layers:
        ours, theirs = f"transformer.resblocks.{n}", f"encoder.layers.{n}"
        for kind in ("weight", "bias"):
            parts = state[f"{ours}.attn.in_proj_{kind}"].chunk(3)
            for letter, part in zip("qkv", parts):
                renamed[f"{theirs}.self_attn.{letter}_proj.{kind}"] = part
            for our_name, their_name in (
                ("attn.out_proj", "self_attn.out_proj"), ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"),
            ):  # fmt: skip
                renamed[f"{theirs}.{their_name}.{kind}"] = state[f"{ours}.{our_name}.{kind}"]
    read = state.keys() - {"text_projection"}
    assert len(renamed) == len(read) + 4 * len(layers), f"a tower with other weights: {read}"
    return renamed


@pytest.mark.spec("CLIP-11")
@pytest.mark.parametrize("prefix", ["text_model.", ""])
def test_weights_of_transformers_give_the_same_vectors(small_encoder, tmp_path, prefix):
    """A whole CLIPModel, and a CLIPTextModel as transformers 4 and 5 write it."""
    encoder = copy.deepcopy(small_encoder)
    for weight in encoder.tower.parameters():
        weight += 0.01 * torch.randn_like(weight)
    renamed = by_the_names_of_transformers(encoder.tower.state_dict())
    vision = {"vision_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(2)}
    torch.save({prefix + name: tensor for name, tensor in renamed.items()} | vision,
               tmp_path / "pytorch_model.bin")  # fmt: skip
    loaded = flowclip.CLIPTextEncoder(encoder.model_name, tmp_path / "pytorch_model.bin")
    equal("Z by loaded weights", loaded.encode("a red car"), encoder.encode("a red car"))


def test_weights_that_transformers_wrote(tmp_path):
    """Its own model and ours, on random weights."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig(
        vocab_size=49408, hidden_size=256, intermediate_size=1024, num_hidden_layers=10,
        num_attention_heads=4, max_position_embeddings=77, hidden_act="gelu", eos_token_id=49407,
    )).eval()  # fmt: skip
    theirs.save_pretrained(tmp_path)
    encoder = flowclip.CLIPTextEncoder("ViT-S-32-alt", tmp_path / "model.safetensors")
    prompts = ["a photo of a cat", "", "a red car on a very long road"]
    Z, mask = encoder(prompts)
    with torch.no_grad():
        expected = theirs(input_ids=encoder.tokenize(prompts)).last_hidden_state
    close("Z", Z[mask], expected[:, : Z.shape[1]][mask], atol=1e-5)


def weights_that_do_not_fit(encoder):
    state = encoder.tower.state_dict()
    missing, reshaped = dict(state), state | {"ln_final.bias": torch.zeros(3)}
    del missing["ln_final.weight"]
    return missing, reshaped


@pytest.mark.spec("CLIP-11")
def test_weights_that_do_not_fit_are_refused(small_encoder, tmp_path):
    for content in weights_that_do_not_fit(small_encoder):
        torch.save(content, tmp_path / "weights.pt")
        refuses(Exception, "small-clip", tmp_path / "weights.pt")


def test_what_is_said_of_weights_that_do_not_fit(small_encoder, tmp_path):
    missing, reshaped = weights_that_do_not_fit(small_encoder)
    for name, content in {"missing": missing, "reshaped": reshaped, "list": [1, 2]}.items():
        torch.save(content, tmp_path / name)
        reason = {"missing": "KeyError", "reshaped": "ln_final.bias"}.get(name, "")
        with pytest.raises(ValueError, match=rf"(?s){name}' gives no text tower.*{reason}"):
            flowclip.CLIPTextEncoder("small-clip", tmp_path / name)
    (tmp_path / "text").write_text("not a checkpoint")
    with pytest.raises(ValueError, match="gives no text tower"):
        flowclip.CLIPTextEncoder("small-clip", str(tmp_path / "text"))
    with pytest.raises(ValueError, match="nothing.pt' gives .*No such file.*'openai'"):
        flowclip.CLIPTextEncoder(pretrained=str(tmp_path / "nothing.pt"))
    with pytest.raises(ValueError, match="'ViT-B-32-quickgel' is no model"):
        flowclip.CLIPTextEncoder("ViT-B-32-quickgel")


@pytest.mark.spec("CLIP-12")
def test_untrained_is_reproducible_and_leaves_the_rng(encoder):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again = flowclip.CLIPTextEncoder(pretrained="untrained")
    assert caught, "no warning says that the tower is untrained"
    assert torch.equal(torch.get_rng_state(), before), "the global random state has changed"
    equal("Z by the same seed", again.encode("a red car"), encoder.encode("a red car"))
    dog, truck = encoder.encode(["a dog", "a truck"], return_pooled=True)[1]
    cosine = torch.cosine_similarity(dog, truck, dim=0)
    assert cosine < 0.99, f"the cosine of 'a dog' and 'a truck' is {cosine:.3f}"


@pytest.mark.spec("CLIP-13")
def test_trim_keeps_the_longest_prompt():
    Z, mask = torch.randn(3, 77, 5), torch.arange(77) < torch.tensor([[2], [7], [4]])
    short, short_mask = flowclip.trim_context(Z, mask)
    equal("Z, cut,", short, Z[:, :7])
    equal("the mask, cut,", short_mask, mask[:, :7])
    mask[0, 8] = True  # a real token after masked ones counts, too
    equal("Z, cut where a masked token stands before a real one,",
          flowclip.trim_context(Z, mask)[0], Z[:, :9])  # fmt: skip


@pytest.mark.spec("CLIP-13")
@given(draw.readings, st.integers(0, 3))
def test_trimming_changes_nothing(s, padding):
    attention, (x, Z, mask) = flowclip.CrossAttention(s.heads * s.d, s.D_z, s.heads), s.tensors()
    attention.double()
    Z = torch.cat([Z, torch.full((s.B, padding, s.D_z), 7.0).double()], 1)
    mask = torch.cat([mask, mask.new_zeros(s.B, padding)], 1)
    short, short_mask = flowclip.trim_context(Z, mask)
    close("the output", attention(x, short, short_mask), attention(x, Z, mask))


@pytest.mark.spec("CLIP-14")
def test_golden_vectors_of_the_real_weights(monkeypatch):
    source = "timm/vit_base_patch32_clip_224.openai", "open_clip_model.safetensors"
    if not os.environ.get("FLOWCLIP_DOWNLOAD"):
        if not isinstance(huggingface_hub.try_to_load_from_cache(*source), str):
            pytest.skip(
                "OpenAI's weights are not in the cache; FLOWCLIP_DOWNLOAD=1 pytest fetches 600 MB"
            )
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the cache alone
    encoder = flowclip.CLIPTextEncoder()
    Z, pooled = encoder.encode(["a photo of a cat", ""], return_pooled=True)
    rows = [[-0.5844, 0.3685, -2.0744], [-0.9600, 1.0018, -0.2415], [-0.5957, -0.1719, 0.4689]]
    close("Z[1:4, 1:4]", Z[0, 1:4, 1:4], rows, atol=2e-4, rtol=0)
    close("pooled[1:4]", pooled[0, 1:4], [0.1658, 0.8876, 10.6313], atol=2e-4, rtol=0)
    cosine = torch.cosine_similarity(pooled[:1], pooled[1:])
    close("the cosine to the null text", cosine, [0.653], atol=1e-3)


def test_a_failed_download_says_what_is_missing(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network in this test")

    monkeypatch.setattr(open_clip, "download_pretrained", refuse)
    said = "gives no text tower of ViT-B-32.*no network in this test.*'openai'"
    with pytest.raises(ValueError, match=f"'openai' {said}"):
        flowclip.CLIPTextEncoder()
    with pytest.raises(ValueError, match=f"'laion2b_s34b_b79k' {said}"):
        flowclip.CLIPTextEncoder("ViT-B-32", "laion2b_s34b_b79k")  # no QuickGELU on either side


def test_a_download_is_loaded(encoder, monkeypatch, tmp_path):
    torch.save(encoder.tower.state_dict(), tmp_path / "download.pt")
    asked = []

    def download(cfg):
        asked.append(cfg["hf_hub"])
        return tmp_path / "download.pt"

    monkeypatch.setattr(open_clip, "download_pretrained", download)
    loaded = flowclip.CLIPTextEncoder()
    assert asked == ["timm/vit_base_patch32_clip_224.openai/"]
    assert torch.equal(loaded.encode("a red car"), encoder.encode("a red car"))


def test_a_call_is_no_longer_than_its_longest_prompt(small_encoder):
    """What the samplers and the trainer read; encode() pads to all 77 places."""
    Z, mask = small_encoder(["a red car", "a car"])
    assert Z.shape == (2, 5, 64) and mask.tolist() == [5 * [True], 4 * [True] + [False]]
    padded = small_encoder.encode(["a red car", "a car"])
    assert torch.equal(padded[:, :5], Z) and padded[:, 5:].eq(0).all() and padded.shape[1] == 77


# ---- L_CLIP ----
@pytest.mark.spec("CLIP-15")
@given(draw.seeds, st.integers(1, 6), st.integers(1, 5), st.floats(0.005, 2))
def test_the_clip_loss_is_what_loops_give(seed, N, D, temperature):
    rand = torch.Generator().manual_seed(seed)
    images, texts = torch.randn(2, N, D, generator=rand, dtype=torch.float64)
    expected = oracles.clip_loss(images.tolist(), texts.tolist(), temperature)
    close("the loss", flowclip.clip_loss(images, texts, temperature), expected)
    close("with images and texts swapped", flowclip.clip_loss(texts, images, temperature), expected)
    longer = flowclip.clip_loss(3 * images, texts / 2, temperature)
    close("with other lengths of the vectors", longer, expected)


@pytest.mark.spec("CLIP-15")
@given(st.integers(1, 8), st.floats(0.05, 2))
def test_the_clip_loss_in_closed_form(N, temperature):
    """N orthogonal directions: cosines are 1 on the diagonal, else 0. N = 1: nothing to confuse."""
    vectors = torch.eye(N, dtype=torch.float64)
    expected = math.log(1 + (N - 1) * math.exp(-1 / temperature))
    close("pairs alike", flowclip.clip_loss(vectors, vectors, temperature), expected)
    alike = flowclip.clip_loss(vectors, torch.ones(N, N, dtype=torch.float64), temperature)
    close("texts that are all one", alike, math.log(N))


@pytest.mark.spec("CLIP-15")
def test_the_clip_loss_is_that_of_open_clip():
    images, texts = torch.randn(2, 5, 7).double().requires_grad_()
    unit = [torch.nn.functional.normalize(vectors) for vectors in (images, texts)]
    theirs = open_clip.ClipLoss()(*unit, logit_scale=1 / 0.07)
    ours = flowclip.clip_loss(images, texts, 0.07)
    close("the loss", ours, theirs)
    grads = [torch.autograd.grad(loss, [images, texts]) for loss in (ours, theirs)]
    close("its gradients", *map(torch.stack, grads))
