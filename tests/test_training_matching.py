"""The two helps for a start from nothing: attention that compares, and a loss that says so."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from einops import rearrange
from random_models import TINY, TINY_CACHED, random_inputs, random_model
from torch import nn

from incontext.image import normalise
from incontext.model.seggpt import SegGPT
from incontext.training.batches import collate, prepare
from incontext.training.episodes import Episode
from incontext.training.matching import MatchingLoss, start_as_similarity

CONFIGS = {"attending": TINY, "not attending": TINY_CACHED}
MERGED = slice(TINY.merge_layer + 1, None)  # the blocks in which the streams are one
GRID, PATCH = TINY.grid, TINY.patch_size


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


def patchwork(shots=2, seed=0):
    """A batch of two episodes whose labels are whole patches, and for each query patch one of the example patches
    (numbered through all examples) that has its label."""
    rng = np.random.default_rng(seed)
    patches, episodes, matches = GRID[0] * GRID[1], [], []
    for _ in range(2):
        labels = np.stack([rng.permutation(np.arange(patches) % 4) for _ in range(shots + 1)])
        matches.append([rng.choice(np.flatnonzero(labels[:-1].ravel() == label)) for label in labels[-1]])
        labels = labels.reshape(shots + 1, *GRID).repeat(PATCH, 1).repeat(PATCH, 2).astype(np.uint8)
        images = rng.integers(0, 256, (*labels.shape, 3), np.uint8)
        episodes.append(Episode(images, labels, 3, "instance", "test", strength=0.0))
    return prepare(collate(episodes, PATCH, rng), PATCH), torch.tensor(np.array(matches))


def listen(model, query, examples):
    """Feeds tokens (B, l, D) and (B, N, l, D) to the projections that the loss listens to, as the blocks would."""
    for block in model.blocks[MERGED]:
        for tokens in (examples, query):
            block.attn.qkv(tokens)


def test_loss_is_zero_where_attention_finds_its_match(config):
    """Every example patch gets a code that no other has, in every head; a query patch gets its match's code."""
    model, (batch, matches) = random_model(config), patchwork(shots=1)
    codes = torch.tensor([[1.0]])
    while codes.shape[0] < 8:  # Hadamard: rows at right angles; with their opposites, 16 codes of 8 numbers
        codes = torch.cat((torch.cat((codes, codes), 1), torch.cat((codes, -codes), 1)))
    codes = 10 * torch.cat((codes, -codes)).repeat(1, TINY.heads)
    with torch.no_grad():
        for block in model.blocks[MERGED]:
            block.attn.qkv.weight.copy_(torch.eye(TINY.width).repeat(3, 1))
            block.attn.qkv.bias.zero_()
    weight = torch.ones(2, 1, *TINY.image_size)
    with MatchingLoss(model) as matching:
        listen(model, codes[matches], codes.expand(2, 1, 16, TINY.width))
        assert matching(batch, weight) < 1e-6
        listen(model, codes[matches].roll(1, 1), codes.expand(2, 1, 16, TINY.width))
        assert matching(batch, weight) > 0.1
        weight[:, :, :, :8] = 0.0  # what weighs nothing does not count
        found = torch.where((torch.arange(16) % 4 == 0)[:, None], codes[0], codes[matches])
        listen(model, found, codes.expand(2, 1, 16, TINY.width))
        assert matching(batch, weight) < 1e-6


def test_loss_is_that_of_the_painting_by_attention(config):
    """In words of a block: mean colours of patches, mixed as softmax(q k / sqrt(d)) says, averaged over heads."""
    model, (batch, _) = random_model(config), patchwork()
    weight = torch.rand(2, 1, *TINY.image_size, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    query, examples = (torch.randn(2, *shape, TINY.width, generator=generator) for shape in ((16,), (2, 16)))

    def means(pixels):
        return nn.functional.avg_pool2d(pixels, PATCH).flatten(-2)

    shown = rearrange(means(batch.example_targets.flatten(0, 1)), "(b n) c l -> b (n l) c", n=2)
    weights, losses = means(weight), []
    with torch.no_grad(), MatchingLoss(model) as matching:
        listen(model, query, examples)
        loss = matching(batch, weight)
        for block in model.blocks[MERGED]:
            q = block.attn.split_heads(query)[0]
            k = rearrange(block.attn.split_heads(examples)[1], "b n a l d -> b a (n l) d")
            attention = torch.softmax(q @ k.mT / (TINY.width / TINY.heads) ** 0.5, -1).mean(1)
            error = nn.functional.smooth_l1_loss(
                (attention @ shown).mT, means(batch.target), beta=0.1, reduction="none"
            )
            losses.append((error * weights).sum() / (3 * weights.sum()))
    torch.testing.assert_close(loss, torch.stack(losses).mean())


def test_gradient_reaches_queries_and_keys(config):
    model, (batch, _) = random_model(config).train(), patchwork()
    with MatchingLoss(model) as matching:
        model(batch.query, batch.example_images, batch.example_targets)
        matching(batch, torch.ones(2, 1, *TINY.image_size)).backward()
    for block in model.blocks:
        query, key, value = block.attn.qkv.weight.grad.chunk(3)
        assert query.any() and key.any()
        assert value.any() == (block is not model.blocks[-1])  # values matter to later blocks alone
    assert model.decoder_embed.weight.grad is None


def test_listening_ends(config):
    model = random_model(config)
    arguments = random_inputs(batch=1, count=1)
    plain = model(*arguments)
    with MatchingLoss(model):
        assert torch.equal(model(*arguments), plain)
    with pytest.raises(RuntimeError, match="in the middle"), MatchingLoss(model):
        raise RuntimeError("in the middle")
    assert not any(module._forward_hooks for module in model.modules())


@pytest.fixture
def fresh(config):
    model = SegGPT(dataclasses.replace(config, pretrain_grid=(8, 4)))
    start_as_similarity(model, torch.Generator().manual_seed(0))
    return model


def test_fresh_keys_equal_queries(fresh):
    tokens = torch.randn(1, 16, TINY.width, generator=torch.Generator().manual_seed(0))
    for block in fresh.blocks:
        query, key, value = block.attn.split_heads(tokens)
        assert torch.equal(query, key)
        # What attention finds arrives as it is.
        torch.testing.assert_close(block.attn.proj(rearrange(value, "b a l d -> b l (a d)")), tokens, atol=1e-5, rtol=0)


def test_fresh_halves_share_their_places(fresh):
    places = fresh.pos_embed[0, 1:].view(2, 16, TINY.width)
    assert torch.equal(places[0], places[1])
    assert torch.pdist(places[0]).min() > 0.05  # but every place of a half is its own


def test_fresh_targets_are_silent_where_nothing_is_painted(fresh):
    """So after the merge a patch of the query is like the same patch on an example's background."""
    black = normalise(np.zeros((PATCH, PATCH, 3), np.uint8))[None]
    with torch.no_grad():
        embedded = fresh.patch_embed(black)[0, 0]
        assert embedded.abs().mean() > 0.2
        for token in (embedded, fresh.mask_token[0, 0, 0]):
            assert (token + fresh.segment_token_y[0, 0, 0]).abs().max() < 0.2  # small draws of deviation 0.02


def test_fresh_weights_repeat_themselves(fresh, config):
    again = SegGPT(fresh.config)
    start_as_similarity(again, torch.Generator().manual_seed(0))
    other = SegGPT(fresh.config)
    start_as_similarity(other, torch.Generator().manual_seed(1))
    for name, weight in fresh.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    assert not torch.equal(fresh.blocks[0].mlp.fc1.weight, other.blocks[0].mlp.fc1.weight)
    assert all(weight.isfinite().all() for weight in fresh.parameters())
