"""Learned tokens: exact, bound to their examples, and in every place where packs go."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from packs import cached_model, examples, small_pack
from predictions import predictor, tiny
from safetensors.torch import save_file
from test_pack import QUERY, equal
from test_pack_file import contents, rewrite

from incontext.pack import PackError, PromptPack
from incontext.pack.compiling import encode_pack
from incontext.pack.joining import merge_packs
from incontext.pack.tokens import add_tokens, stack_tokens, token_shape
from incontext.palette import Palette
from incontext.prompt import Prompt


def token_pack(model, names=("cell", "nucleus"), name="small", scale=0.5):
    pack = small_pack(model, names, name)
    noise = torch.randn(2, *token_shape(model.config), generator=torch.Generator().manual_seed(len(name)))
    return dataclasses.replace(pack, tokens=(scale * noise).half())


def differ(a, b):
    return np.abs(a.painting.astype(float) - b.painting).mean() > 0.5


def test_tokens_change_the_painting_and_zeros_do_not():
    model = cached_model()
    plain, zeros, learned = small_pack(model), token_pack(model, scale=0.0), token_pack(model)
    one = predictor(model)
    equal(one.predict(QUERY, plain), one.predict(QUERY, zeros))
    assert differ(one.predict(QUERY, plain), one.predict(QUERY, learned))


@pytest.mark.parametrize("encoded", [False, True])
def test_saved_and_loaded_is_the_same_to_the_last_bit(tmp_path, encoded):
    model = cached_model()
    pack = token_pack(model)
    before = predictor(model).predict(QUERY, pack)
    (encode_pack(pack, model) if encoded else pack).save(tmp_path / "p.safetensors")
    loaded = PromptPack.load(tmp_path / "p.safetensors")
    assert torch.equal(loaded.tokens, pack.tokens) and loaded.tokens.dtype == torch.float16
    equal(before, predictor(model).predict(QUERY, loaded))
    assert "in the last 3 blocks" in (tmp_path / "p.md").read_text()


def test_they_are_added_to_their_own_examples_keys_and_values_after_the_merge():
    model = cached_model()
    tokens = token_pack(model).tokens.float()
    images, targets = torch.randn(2, 1, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    cache = model.encode_prompt(images, targets)
    changed = add_tokens(cache, tokens)
    merge = model.config.merge_layer
    for index, (old, new) in enumerate(zip(cache.layers, changed.layers, strict=True)):
        for part in (0, 1):
            extra = torch.zeros_like(old[part])
            if index > merge:
                extra[0, :2] = tokens[:, index - merge - 1, part]
            assert torch.equal(new[part], old[part] + extra)
    with pytest.raises(PackError, match="another model"):
        add_tokens(cache, tokens[..., :3, :])
    with pytest.raises(PackError, match="for 4"):
        add_tokens(cache, tokens.repeat(2, 1, 1, 1, 1, 1))


def test_mirrored_examples_have_mirrored_tokens():
    """They stay at their patches: a prediction with flips mirrors the examples."""
    model = cached_model()
    tokens = token_pack(model).tokens.float()
    cache = model.encode_prompt(*torch.zeros(2, 1, 2, 3, 32, 32))
    upright, mirrored = (add_tokens(cache, tokens, mirrored=each) for each in (False, True))
    h, w = cache.grid
    for old, a, b in zip(cache.layers, upright.layers, mirrored.layers, strict=True):
        gain = (a.key - old.key).unflatten(3, (h, w))
        torch.testing.assert_close((b.key - old.key).unflatten(3, (h, w)), gain.flip(4))
    pack = token_pack(model)
    one = predictor(model)
    assert differ(one.predict(QUERY, pack, flip=True), one.predict(QUERY, small_pack(model), flip=True))


def test_they_work_beside_examples_and_other_packs():
    model = cached_model()
    learned, other, own = token_pack(model), small_pack(model, ["leaf", "cell"], "other"), examples(["cell"], 2, seed=5)
    one = predictor(model)
    prompt = one.prompt([other, learned, *own])
    tokens = prompt.tokens(0)
    assert not tokens[:2].any() and torch.equal(tokens[2:], learned.tokens)  # zeros for the pack without
    together = one.predict(QUERY, [other, learned])
    equal(together, one.predict(QUERY, merge_packs([other, learned], "merged")))
    plain = dataclasses.replace(learned, tokens=None)
    assert differ(one.predict(QUERY, [learned, *own]), one.predict(QUERY, [plain, *own]))
    coloured = predictor(model, palette=lambda ids: Palette.random(ids, torch.Generator().manual_seed(3)))
    assert differ(coloured.predict(QUERY, learned), coloured.predict(QUERY, plain))


def test_sources_that_are_encoded_apart_have_their_tokens():
    model = cached_model()
    sources = [token_pack(model), *examples(["cell"], 1, seed=5)]
    one = predictor(model)
    prompt = one.prompt(sources)
    apart = Prompt(prompt.examples, prompt.palettes, prompt.names, prompt.packs, apart=True)
    together, separate = one.predict(QUERY, prompt), one.predict(QUERY, apart)
    np.testing.assert_allclose(together.painting.astype(int), separate.painting.astype(int), atol=1)


def test_where_tokens_mean_nothing_they_are_refused():
    model = cached_model()
    pack = token_pack(model)
    with pytest.raises(PackError, match="feature ensemble"):
        predictor(model).predict(QUERY, pack, ensemble="spatial")
    with pytest.raises(PackError, match="feature ensemble"):
        dataclasses.replace(pack, ensemble="spatial")
    with pytest.raises(PackError, match="made for another model"):
        predictor(tiny()).predict(QUERY, pack)
    with pytest.raises(ValueError, match="do not attend to the query"):
        token_shape(tiny().config)
    attending = tiny()
    forged = dataclasses.replace(pack, fingerprint=predictor(attending).fingerprint)
    with pytest.raises(PackError, match="without learned tokens"):
        predictor(attending).predict(QUERY, forged)
    with pytest.raises(PackError, match="different models"):
        stack_tokens([(2, pack.tokens), (2, pack.tokens[:, :1])])


def test_tokens_that_no_pack_can_hold_are_refused(tmp_path):
    pack = token_pack(cached_model())
    path = tmp_path / "p.safetensors"
    pack.save(path)
    tensors, fields = contents(path)
    wrong = (
        tensors["tokens"].float(),
        tensors["tokens"][:1],
        tensors["tokens"][:, :, :1].contiguous(),
        torch.full_like(tensors["tokens"], float("nan")),
        tensors["tokens"][0],
    )
    for tokens in wrong:
        rewrite(path, {**tensors, "tokens": tokens.contiguous()}, fields)
        with pytest.raises(PackError, match="tokens"):
            PromptPack.load(path)
    rewrite(path, tensors, {**fields, "ensemble": "spatial"})
    with pytest.raises(PackError, match="tokens"):
        PromptPack.load(path)
    save_file({"tokens": tensors["tokens"]}, path)
    with pytest.raises(PackError):
        PromptPack.load(path)
