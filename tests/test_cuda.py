"""CUDA graphs and attention on a GPU: their logic on any machine, their numbers where there is a GPU."""

from __future__ import annotations

import copy
import dataclasses
import logging
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from random_models import TINY, TINY_CACHED, random_inputs, random_model, random_painted

from incontext.model import graphs
from incontext.model.attention import Bias
from incontext.model.cuda_attention import attend_wide, takes_wide
from incontext.model.graphs import GraphedSegGPT, Graphs, without_graphs
from incontext.model.inference import for_inference

needs_cuda = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
WIDER = dataclasses.replace(TINY, width=64, image_size=(64, 96))  # of 192 tokens and 16 channels, as kernels want it

TOLERANCES = {"fp32": 1e-4, "bf16": 2e-2}  # the same kernels run, but cuBLAS may sum in another order


class FakeGraph:
    """Runs its function anew, from and to where it was captured, as a graph does."""

    replays = 0

    def __init__(self, function, result):
        self.function, self.result = function, result

    def pool(self):
        return None

    def replay(self):
        FakeGraph.replays += 1
        fresh = graphs._tensors(self.function())
        for own, new in zip(graphs._tensors(self.result), fresh, strict=True):
            own.copy_(new)


@pytest.fixture
def captures(monkeypatch):
    """Counts captures, which are pretended."""
    made = []

    def capture(function, pool, device):
        made.append(function)
        result = function()
        return FakeGraph(function, result), result

    monkeypatch.setattr(graphs, "_can_replay", lambda model: not graphs._off and not torch.is_grad_enabled())
    monkeypatch.setattr(graphs, "_capture", capture)
    monkeypatch.setattr(FakeGraph, "replays", 0)
    return made


def graphed(config=TINY_CACHED, most=8) -> GraphedSegGPT:
    model = GraphedSegGPT.of(random_model(config))
    model.graphs = Graphs(most)
    return model


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_second_call_is_captured_and_the_third_replayed(captures):
    model, plain = graphed(), random_model(TINY_CACHED)
    cache = plain.encode_prompt(*random_inputs(1, 2)[1:])
    for number in range(4):
        query = random_inputs(2, 1, seed=number)[0]
        assert_same(model.forward_cached(query, cache), plain.forward_cached(query, cache))
        assert (len(captures), FakeGraph.replays) == (min(number, 1), number)


@torch.no_grad()
def test_prompts_of_one_shape_share_a_graph_and_do_not_mix(captures):
    model, plain = graphed(), random_model(TINY_CACHED)
    caches = [plain.encode_prompt(*random_inputs(1, 2, seed=seed)[1:]) for seed in range(3)]
    query = random_inputs(1, 1)[0]
    expected = [plain.forward_cached(query, cache) for cache in caches]
    for k in (0, 0, 1, 2, 2, 0, 1):
        assert_same(model.forward_cached(query, caches[k]), expected[k])
    assert len(captures) == 1
    with torch.inference_mode():
        gone = plain.encode_prompt(*random_inputs(1, 2, seed=9)[1:])
        model.forward_cached(query, gone)
        del gone  # a new cache in the same place in memory is another one
        again = plain.encode_prompt(*random_inputs(1, 2, seed=10)[1:])
        assert_same(model.forward_cached(query, again), plain.forward_cached(query, again))


@torch.no_grad()
def test_results_stay_when_the_graph_is_replayed(captures):
    model = graphed()
    cache = model.encode_prompt(*random_inputs(1, 1)[1:])
    paintings = [model.forward_cached(random_inputs(1, 1, seed=k)[0], cache) for k in range(4)]
    kept = paintings[2].clone()
    model.forward_cached(random_inputs(1, 1, seed=9)[0], cache)
    assert torch.equal(paintings[2], kept) and not torch.equal(paintings[2], paintings[3])


@pytest.mark.parametrize("config", [TINY, TINY_CACHED], ids=["attending", "not attending"])
@torch.no_grad()
def test_every_kind_of_call_equals_the_plain_one(captures, config):
    model, plain = graphed(config, most=32), random_model(config)
    for seed in range(3):
        query, images, targets = random_inputs(2, 2, seed=seed)
        target, hidden = random_painted(2, seed=seed)
        painted = {"query_target": target, "hidden": hidden}
        assert_same(model(query, images, targets), plain(query, images, targets))
        assert_same(model(query, images, targets, kind="semantic"), plain(query, images, targets, kind="semantic"))
        assert_same(model(query, images, targets, **painted), plain(query, images, targets, **painted))
        assert_same(model(query, **painted), plain(query, **painted))
        whole = torch.ones_like(hidden)
        assert_same(model(query, images, targets, hidden=whole), plain(query, images, targets, hidden=whole))
        if config.examples_attend_query:
            stream = model.encode_targets(images, targets)
            assert_same(model(query, images, targets, target_stream=stream), plain(query, images, targets))
            continue
        caches = [model.encode_prompt(images[:1], each) for each in (targets[:1], targets[1:])]
        other = [plain.encode_prompt(images[:1], each) for each in (targets[:1], targets[1:])]
        assert_same(model.forward_passes(query, caches), plain.forward_passes(query, other))
        assert_same(model.forward_cached(query, caches[0], **painted), plain.forward_cached(query, other[0], **painted))
    assert captures and FakeGraph.replays > len(captures)


@torch.no_grad()
def test_a_bounded_number_of_graphs_is_kept(captures):
    model, cache = graphed(most=2), random_model(TINY_CACHED).encode_prompt(*random_inputs(1, 1)[1:])
    for batch in (1, 2, 3):
        for _ in range(2):
            model.forward_cached(random_inputs(batch, 1)[0], cache)
    assert len(model.graphs) == 2 and len(captures) == 3
    model.forward_cached(random_inputs(3, 1)[0], cache)
    assert len(captures) == 3
    model.forward_cached(random_inputs(1, 1)[0], cache)
    assert len(model.graphs) == 2 and len(captures) == 4


@torch.no_grad()
def test_a_failing_capture_is_told_once_and_not_tried_again(captures, monkeypatch, caplog):
    tries = []

    def fail(function, pool, device):
        tries.append(function)
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(graphs, "_capture", fail)
    model, plain = graphed(), random_model(TINY_CACHED)
    cache = plain.encode_prompt(*random_inputs(1, 1)[1:])
    with caplog.at_level(logging.WARNING):
        for batch in (1, 1, 1, 2, 2):
            query = random_inputs(batch, 1)[0]
            assert_same(model.forward_cached(query, cache), plain.forward_cached(query, cache))
    assert len(tries) == len(caplog.records) == 1 and len(model.graphs) == 0
    assert "forward_cached runs without a CUDA graph" in caplog.text and "\nmore" not in caplog.text


@torch.no_grad()
def test_graphs_can_be_switched_off_and_gradients_do_without(captures):
    model, inputs = graphed(TINY), random_inputs(1, 1)
    with without_graphs():
        for _ in range(3):
            model(*inputs)
    with torch.enable_grad():
        for _ in range(3):
            assert model(*inputs).requires_grad
    assert not captures
    with pytest.raises(ValueError, match="example_images must be"):
        for _ in range(2):
            model(inputs[0], *random_inputs(2, 1)[1:])


@torch.no_grad()
def test_who_listens_to_a_layer_hears_every_call(captures):
    model, inputs, heard = graphed(TINY), random_inputs(1, 1), []
    for _ in range(3):
        model(*inputs)
    handle = model.norm.register_forward_hook(lambda module, given, output: heard.append(output))
    model(*inputs)
    handle.remove()
    model(*inputs)
    assert len(heard) == 2 * len(TINY.tap_layers) and len(captures) == 1 and FakeGraph.replays == 3


def test_copies_and_saved_weights_are_those_of_a_plain_model(captures):
    model = graphed()
    with torch.no_grad():
        for _ in range(2):
            model(*random_inputs(1, 1))
    assert len(model.graphs) == 1
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(other, GraphedSegGPT) and len(other.graphs) == 0
    model._kept_positions = ((4, 4), "cuda"), torch.zeros(1)
    assert model.float()._kept_positions is None
    assert model.state_dict().keys() == random_model(TINY_CACHED).state_dict().keys()


def test_on_a_cpu_there_are_no_graphs():
    model = random_model(TINY_CACHED)
    assert not isinstance(for_inference(model, "fp32"), GraphedSegGPT)
    assert not graphs._can_replay(model)


@torch.no_grad()
def test_kept_tables_are_those_of_the_size():
    model, plain = random_model(TINY), random_model(TINY)
    for block in model.blocks:
        block.attn.keeps_tables = True
    for size in ((32, 32), (24, 48), (24, 48), (32, 32)):
        inputs = random_inputs(1, 2, size=size)
        with torch.enable_grad():
            expected = plain(*inputs).detach()
        assert_same(model(*inputs), expected)
    assert model.blocks[0].attn._kept_tables
    for rows in range(1, 20):
        model(*random_inputs(1, 1, size=(8 * rows, 16)))
    assert len(model.blocks[0].attn._kept_tables) == 8


def attention_inputs(query_rows, key_rows, dtype=torch.float32, device="cpu"):
    """Query (2, 3, 16 * rows, 16), keys, values and both parts of a bias; 16 columns."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 16 * rows, 16) for rows in (query_rows, key_rows, key_rows)]
    shapes += [(2, 3, query_rows, 16, last) for last in (key_rows, 16)]
    return [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]


def with_whole_bias(query, key, value, rows, columns):
    return F.scaled_dot_product_attention(query, key, value, attn_mask=Bias(rows, columns).whole())


@pytest.mark.parametrize("rows", [(4, 8), (8, 8)], ids=["query alone", "whole canvas"])
@torch.no_grad()
def test_wide_attention_equals_the_whole_bias(rows):
    inputs = attention_inputs(*rows)
    assert_same(attend_wide(*inputs), with_whole_bias(*inputs))
    assert not takes_wide(inputs[0], *inputs[3:])  # which is for CUDA


class TestOnCuda:
    pytestmark = needs_cuda

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    @torch.inference_mode()
    def test_replays_equal_plain_calls(self, precision):
        model = for_inference(random_model(TINY_CACHED).cuda(), precision)
        assert isinstance(model, GraphedSegGPT)
        caches = [
            model.encode_prompt(*(each.cuda() for each in random_inputs(1, 2, seed=seed)[1:])) for seed in range(2)
        ]
        for number in range(6):
            query = random_inputs(2, 1, seed=number)[0].cuda()
            actual = model.forward_cached(query, caches[number % 2])
            with without_graphs():
                expected = model.forward_cached(query, caches[number % 2])
            assert (actual - expected).abs().max() < TOLERANCES[precision]
        assert len(model.graphs) >= 1 and not model.graphs._refused

    @torch.inference_mode()
    def test_a_captured_model_can_leave_for_a_cpu(self):
        model, inputs = for_inference(random_model(TINY).cuda()), random_inputs(1, 2)
        for _ in range(3):
            painted = model(*(each.cuda() for each in inputs))
        moved = pickle.loads(pickle.dumps(copy.deepcopy(model).cpu()))
        assert (moved(*inputs) - painted.cpu()).abs().max() < 1e-2  # convolutions on CUDA use TF32
        assert len(model.graphs) == 1 and {key[0].type for key in moved.blocks[0].attn._kept_tables} <= {"cpu"}

    @pytest.mark.parametrize("config", [TINY, TINY_CACHED], ids=["attending", "not attending"])
    @torch.inference_mode()
    def test_graphs_of_other_sizes_do_not_disturb_each_other(self, config):
        model = for_inference(random_model(config).cuda(), "bf16")
        for number in range(12):
            size, batch = ((32, 32), (24, 48))[number % 2], 1 + number // 2 % 2
            inputs = [each.cuda() for each in random_inputs(batch, 2, size=size, seed=number)]
            actual = model(*inputs)
            with without_graphs():
                expected = model(*inputs)
            assert (actual - expected).abs().max() < TOLERANCES["bf16"]
        assert len(model.graphs) == 4 and not model.graphs._refused

    @pytest.mark.parametrize("rows", [(8, 16), (16, 16)], ids=["query alone", "whole canvas"])
    @torch.inference_mode()
    def test_wide_attention_in_half_precision(self, rows):
        inputs = attention_inputs(*rows, dtype=torch.bfloat16, device="cuda")
        assert takes_wide(inputs[0], *inputs[3:])
        expected = with_whole_bias(*(each.double() for each in inputs))
        assert (attend_wide(*inputs).double() - expected).norm() / expected.norm() < 2e-2

    @torch.inference_mode()
    def test_a_model_with_wide_attention(self):
        plain = random_model(WIDER).cuda()
        model, inputs = (
            for_inference(plain, "bf16"),
            [each.cuda() for each in random_inputs(2, 2, size=WIDER.image_size)],
        )
        expected = plain(*inputs)
        for _ in range(3):
            assert (model(*inputs) - expected).norm() / expected.norm() < 5e-2
        assert len(model.graphs) == 1

    def test_masks_are_those_of_the_cpu(self):
        import incontext
        from incontext.scenes import render_scene, task_labels

        generator = np.random.default_rng(0)
        scenes = [render_scene(generator, (128, 128), task="spheres") for _ in range(5)]
        example = incontext.Example(scenes[0].image, task_labels(scenes[0], "spheres"))
        masks = []
        for device in ("cpu", "cuda"):
            predictor = incontext.Predictor(incontext.load_model(), device=device)
            masks.append([predictor.predict(scene.image, [example]).labels for scene in scenes[1:]])
        assert np.mean(np.equal(*map(np.stack, masks))) > 0.995

    @torch.inference_mode()
    def test_a_call_that_cannot_be_captured_goes_on_plainly(self, caplog, monkeypatch):
        model, query = for_inference(random_model(TINY_CACHED).cuda()), random_inputs(1, 1)[0].cuda()
        cache = model.encode_prompt(*(each.cuda() for each in random_inputs(1, 1)[1:]))
        with without_graphs():
            expected = model.forward_cached(query, cache)
        norm = model.blocks[3].norm1
        plain = norm.forward
        monkeypatch.setattr(norm, "forward", lambda tokens: plain(tokens) + 0 * tokens.sum().item())
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                assert (model.forward_cached(query, cache) - expected).abs().max() < 1e-4
        assert caplog.text.count("without a CUDA graph") == 1
        assert torch.cuda.current_stream() == torch.cuda.default_stream()
        assert torch.rand(3, device="cuda").isfinite().all()
