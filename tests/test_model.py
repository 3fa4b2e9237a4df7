"""The model against transformers' SegGPT: same weights, same painting (N = 1), same loss."""

from __future__ import annotations

import pytest
import torch
from random_models import TINY, random_inputs, random_model, random_painted

from incontext.canvas import hidden_half
from incontext.model.config import PRESETS, SegGPTConfig
from incontext.model.loss import smooth_l1
from incontext.model.seggpt import SegGPT
from incontext.model.transformers_format import config_to_transformers, key_to_transformers

KINDS = ("instance", "semantic")


def transformers_model(model: SegGPT):
    """transformers' SegGPT with the same weights."""
    from transformers import SegGptConfig, SegGptForImageSegmentation

    with torch.device("meta"):
        port = SegGptForImageSegmentation(SegGptConfig(**config_to_transformers(model.config)))
    state = {key_to_transformers(key): tensor for key, tensor in model.state_dict().items()}
    port.load_state_dict(state, assign=True)
    return port.eval()


@pytest.fixture(scope="module")
def pair():
    model = random_model()
    return model, transformers_model(model)


def canvas_hidden(hidden: torch.Tensor) -> torch.Tensor:
    """transformers' `bool_masked_pos`: the example's half is visible."""
    return torch.cat((torch.zeros_like(hidden), hidden), dim=1)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_painting_equals_transformers(pair, kind):
    model, port = pair
    query, images, targets = random_inputs(batch=3, count=1)
    ours = model(query, images, targets, kind=kind)
    theirs = port(query, images[:, 0], targets[:, 0], embedding_type=kind).pred_masks
    # float32, values around 1: both add the same numbers, in another order.
    torch.testing.assert_close(ours, theirs[:, :, TINY.image_size[0] :], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_partly_painted_query_and_loss_equal_transformers(pair, kind):
    model, port = pair
    query, images, targets = random_inputs(batch=3, count=1)
    painted, hidden = random_painted(batch=3)
    ours = model(query, images, targets, query_target=painted, hidden=hidden, kind=kind)
    theirs = port(
        query,
        images[:, 0],
        targets[:, 0],
        embedding_type=kind,
        labels=painted,
        bool_masked_pos=canvas_hidden(hidden),
    )
    torch.testing.assert_close(ours, theirs.pred_masks[:, :, TINY.image_size[0] :], atol=1e-5, rtol=0)
    torch.testing.assert_close(smooth_l1(ours, painted, hidden, beta=TINY.loss_beta), theirs.loss, atol=1e-5, rtol=0)


@torch.no_grad()
def test_every_input_matters(pair):
    """The comparisons above mean something only where a change of any input shows."""
    model, _ = pair
    query, images, targets = random_inputs(batch=1, count=1)
    other_query, other_images, other_targets = random_inputs(batch=1, count=1, seed=9)
    painted, hidden = random_painted(batch=1)
    painting = model(query, images, targets)
    for other in (
        model(other_query, images, targets),
        model(query, other_images, targets),
        model(query, images, other_targets),
        model(query, images, targets, kind="semantic"),
        model(query, images, targets, query_target=painted, hidden=hidden),
    ):
        assert (painting - other).abs().mean() > 0.1


@torch.no_grad()
def test_hidden_patches_of_the_query_target_are_not_read(pair):
    model, _ = pair
    query, images, targets = random_inputs(batch=2, count=1)
    painted, hidden = random_painted(batch=2)
    patch, (h, w) = TINY.patch_size, TINY.grid
    below = hidden.view(-1, 1, h, w).repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    scribbled = torch.where(below, torch.full_like(painted, torch.nan), painted)
    assert torch.equal(
        model(query, images, targets, query_target=painted, hidden=hidden),
        model(query, images, targets, query_target=scribbled, hidden=hidden),
    )


@torch.no_grad()
def test_by_default_everything_is_hidden(pair):
    model, _ = pair
    query, images, targets = random_inputs(batch=2, count=1)
    painted, _ = random_painted(batch=2)
    painting = model(query, images, targets)
    everything = hidden_half(2, TINY.grid)
    assert torch.equal(painting, model(query, images, targets, query_target=painted, hidden=everything))
    assert torch.equal(painting, model(query, images, targets, hidden=everything))


def test_the_default_config_is_the_published_model():
    with torch.device("meta"):
        model = SegGPT(SegGPTConfig())
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert SegGPTConfig() == PRESETS["seggpt-vit-large"]
    assert sum(p.numel() for p in model.parameters()) == 370_723_203
    assert len(model.blocks) == 24
    assert shapes["pos_embed"] == (1, 197, 1024)
    assert shapes["patch_embed.proj.weight"] == (1024, 3, 16, 16)
    assert shapes["blocks.23.attn.rel_pos_h"] == (111, 64)
    assert shapes["blocks.23.attn.rel_pos_w"] == (55, 64)
    assert shapes["decoder_embed.weight"] == (16384, 4096)
    assert shapes["decoder_pred.3.weight"] == (3, 64, 1, 1)


def test_config_round_trips_through_json_values():
    for config in PRESETS.values():
        assert SegGPTConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"wdith": 8}, "unknown config fields"),
        ({"width": "8"}, "width"),
        ({"width": True}, "width"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps"),
        ({"examples_attend_query": "no"}, "examples_attend_query"),
        ({"tap_layers": [5, "x"]}, "tap_layers"),
        ({"image_size": [448]}, "image_size"),
        ({"image_size": [450, 448]}, "multiple of patch_size"),
        ({"heads": 7}, "multiple of heads"),
        ({"merge_layer": 24}, "merge_layer"),
        ({"tap_layers": [1, 5]}, "tap_layers"),
        ({"tap_layers": [5, 24]}, "tap_layers"),
        ({"stochastic_depth": 1.0}, "stochastic_depth"),
    ],
)
def test_impossible_configs_are_refused(fields, expected):
    with pytest.raises(ValueError, match=expected):
        SegGPTConfig.from_dict(fields)


@torch.no_grad()
def test_other_image_sizes_than_the_configs(pair):
    """Position tables are resized; the result has the query's size."""
    model, _ = pair
    query, images, targets = random_inputs(batch=2, count=2, size=(24, 48))
    painting = model(query, images, targets)
    assert painting.shape == query.shape
    assert painting.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(pair, dtype):
    model, _ = pair
    query, images, targets = random_inputs(batch=1, count=2)
    precise = model(query, images, targets)
    other = random_model().to(dtype)(query.to(dtype), images.to(dtype), targets.to(dtype))
    assert other.dtype == dtype
    # bfloat16 keeps 8 bits, over six blocks; float64 only repeats what float32 rounds.
    limit = 0.5 if dtype is torch.bfloat16 else 1e-5
    assert (other.float() - precise).abs().max() < limit


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_vit_large_equals_transformers(kind):
    """The published size. About 6 GB of memory."""
    config = PRESETS["seggpt-vit-large"]
    model = random_model(config)
    port = transformers_model(model)  # shares the weights' memory
    query, images, targets = random_inputs(batch=1, count=1, size=config.image_size)
    painted, hidden = random_painted(batch=1, config=config)
    ours = model(query, images, targets, query_target=painted, hidden=hidden, kind=kind)
    theirs = port(
        query,
        images[:, 0],
        targets[:, 0],
        embedding_type=kind,
        labels=painted,
        bool_masked_pos=canvas_hidden(hidden),
    )
    assert ours.std() > 0.1
    # float32 over 24 blocks and sums of 4096.
    torch.testing.assert_close(ours, theirs.pred_masks[:, :, config.image_size[0] :], atol=1e-4, rtol=0)
    torch.testing.assert_close(smooth_l1(ours, painted, hidden, beta=config.loss_beta), theirs.loss, atol=1e-4, rtol=0)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@torch.no_grad()
def test_cuda_equals_cpu(pair):
    model, _ = pair
    query, images, targets = random_inputs(batch=2, count=3)
    on_cpu = model(query, images, targets)
    on_cuda = random_model().cuda()(query.cuda(), images.cuda(), targets.cuda()).cpu()
    # cuBLAS may multiply in TF32 (10 bits) where a user allows it; by default it does not.
    torch.testing.assert_close(on_cuda, on_cpu, atol=1e-3, rtol=0)
