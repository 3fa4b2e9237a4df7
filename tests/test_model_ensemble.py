"""Many examples, many queries: the feature ensemble, the batch axis, and the prompt cache.

All in float64, so that differences of 1e-9 are differences in the rule and not in rounding.
"""

from __future__ import annotations

import pytest
import torch
from literal_seggpt import literal_painting
from random_models import TINY, TINY_CACHED, random_inputs, random_model, random_painted

CONFIGS = {"attending": TINY, "not attending": TINY_CACHED}
KINDS = ("instance", "semantic")


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    return random_model(CONFIGS[request.param]).double()


@pytest.fixture(scope="module")
def cached():
    return random_model(TINY_CACHED).double()


def inputs(batch: int, count: int, **options):
    return tuple(tensor.double() for tensor in random_inputs(batch, count, **options))


def painted_query(batch: int):
    target, hidden = random_painted(batch)
    return target.double(), hidden


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@torch.no_grad()
def test_equals_the_literal_rule(model, count, kind):
    query, images, targets = inputs(batch=2, count=count)
    expected = [literal_painting(model, query[b], images[b], targets[b], kind) for b in range(2)]
    assert_same(model(query, images, targets, kind=kind), torch.stack(expected))


@torch.no_grad()
def test_equals_the_literal_rule_with_a_partly_painted_query(model):
    query, images, targets = inputs(batch=2, count=3)
    painted, hidden = painted_query(batch=2)
    expected = [
        literal_painting(model, query[b], images[b], targets[b], query_target=painted[b], hidden=hidden[b])
        for b in range(2)
    ]
    assert_same(model(query, images, targets, query_target=painted, hidden=hidden), torch.stack(expected))


@torch.no_grad()
def test_equals_the_literal_rule_at_another_size(model):
    query, images, targets = inputs(batch=1, count=2, size=(24, 40))
    expected = literal_painting(model, query[0], images[0], targets[0])
    assert_same(model(query, images, targets)[0], expected)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_no_examples_equals_the_query_alone(model, kind):
    query, images, targets = inputs(batch=2, count=0)
    painted, hidden = painted_query(batch=2)
    expected = [literal_painting(model, query[b], images[b], targets[b], kind, painted[b], hidden[b]) for b in range(2)]
    painting = model(query, query_target=painted, hidden=hidden, kind=kind)
    assert_same(painting, torch.stack(expected))
    assert torch.equal(painting, model(query, images, targets, query_target=painted, hidden=hidden, kind=kind))


@torch.no_grad()
def test_copies_of_an_example_equal_one(model):
    query, images, targets = inputs(batch=2, count=1)
    copies = [tensor.repeat(1, 4, 1, 1, 1) for tensor in (images, targets)]
    assert_same(model(query, *copies), model(query, images, targets))


@torch.no_grad()
def test_order_of_examples_shows_in_the_first_pixel_row_alone(model):
    """The head's 3x3 convolution reaches one pixel row into the first example; all else is an average."""
    query, images, targets = inputs(batch=1, count=4)
    painting = model(query, images, targets)
    others_swapped = model(query, images[:, [0, 3, 1, 2]], targets[:, [0, 3, 1, 2]])
    first_swapped = model(query, images[:, [2, 1, 0, 3]], targets[:, [2, 1, 0, 3]])
    assert_same(others_swapped, painting)
    assert_same(first_swapped[:, :, 1:], painting[:, :, 1:])
    assert (first_swapped[:, :, 0] - painting[:, :, 0]).abs().max() > 1e-3


@torch.no_grad()
def test_every_example_counts(model):
    query, images, targets = inputs(batch=1, count=3)
    painting = model(query, images, targets)
    for dropped in range(3):
        rest = [i for i in range(3) if i != dropped]
        assert (model(query, images[:, rest], targets[:, rest]) - painting).abs().mean() > 0.01


@torch.no_grad()
def test_a_batch_equals_a_loop(model):
    """Every query has its own examples, painted patches and kind."""
    query, images, targets = inputs(batch=4, count=2)
    painted, hidden = painted_query(batch=4)
    kinds = ["instance", "semantic", "semantic", "instance"]
    together = model(query, images, targets, query_target=painted, hidden=hidden, kind=kinds)
    for b in range(4):
        one = slice(b, b + 1)
        alone = model(
            query[one],
            images[one],
            targets[one],
            query_target=painted[one],
            hidden=hidden[one],
            kind=kinds[b],
        )
        assert_same(together[one], alone)


@torch.no_grad()
def test_arguments_are_not_changed(model):
    query, images, targets = inputs(batch=2, count=2)
    painted, hidden = painted_query(batch=2)
    given = (query, images, targets, painted, hidden)
    before = [tensor.clone() for tensor in given]
    model(query, images, targets, query_target=painted, hidden=hidden)
    assert all(torch.equal(old, new) for old, new in zip(before, given, strict=True))


@pytest.mark.parametrize("count", [1, 3])
@torch.no_grad()
def test_cached_prompt_equals_forward(cached, count):
    query, images, targets = inputs(batch=2, count=count)
    painted, hidden = painted_query(batch=2)
    cache = cached.encode_prompt(images, targets, kind=["semantic", "instance"])
    assert cache.batch_size == 2
    assert_same(cached.forward_cached(query, cache), cached(query, images, targets, kind=["semantic", "instance"]))
    assert_same(
        cached.forward_cached(query, cache, query_target=painted, hidden=hidden),
        cached(query, images, targets, query_target=painted, hidden=hidden, kind=["semantic", "instance"]),
    )


@pytest.mark.parametrize("kind", ["semantic", ["semantic"]])
@torch.no_grad()
def test_one_cached_prompt_serves_any_number_of_queries(cached, kind):
    query, images, targets = inputs(batch=3, count=2)
    cache = cached.encode_prompt(images[:1], targets[:1], kind=kind)
    expected = [literal_painting(cached, each, images[0], targets[0], "semantic") for each in query]
    assert_same(cached.forward_cached(query, cache), torch.stack(expected))
    assert_same(cached.forward_cached(query[:1], cache), torch.stack(expected[:1]))
    assert_same(cached.forward_cached(query, cache.expand(3)), torch.stack(expected))


@torch.no_grad()
def test_cache_holds_no_more_than_keys_values_and_border(cached):
    _, images, targets = inputs(batch=1, count=2)
    cache = cached.encode_prompt(images, targets)
    tokens = TINY.grid[0] * TINY.grid[1]
    assert len(cache.layers) == TINY.depth
    for index, layer in enumerate(cache.layers):
        streams = 2 if index <= TINY.merge_layer else 1
        assert layer.key.shape == layer.value.shape == (streams, 2, TINY.heads, tokens, TINY.width // TINY.heads)
    assert cache.border.shape == (1, TINY.grid[1], len(TINY.tap_layers) * TINY.width)


@torch.no_grad()
def test_images_that_are_painted_in_several_ways_are_encoded_once(cached):
    _, images, targets = inputs(batch=3, count=2)
    spread, shapes = images[:1].expand_as(targets), []
    watch = cached.blocks[0].norm1.register_forward_hook(lambda _, args, __: shapes.append(args[0].shape[:2]))
    once, each = (cached.encode_prompt(shown, targets) for shown in (images[:1], spread))
    watch.remove()
    assert shapes[0] == (4, 2) and (6, 2) in shapes
    for one, other in zip(once.layers, each.layers, strict=True):
        assert_same(one.key, other.key)
        assert_same(one.value, other.value)
    assert_same(once.border, each.border)
    assert_same(once.target, each.target)


def test_cache_errors(cached):
    query, images, targets = inputs(batch=3, count=1)
    two = cached.encode_prompt(images[:2], targets[:2])
    with pytest.raises(ValueError, match="2 prompts for 3 queries"):
        cached.forward_cached(query, two)
    with pytest.raises(ValueError, match="resize it to"):
        cached.forward_cached(query[..., :24], two)
    with pytest.raises(ValueError, match="must both be"):
        cached.encode_prompt(images, targets[:, :, :, :8])
    with pytest.raises(ValueError, match="must both be"):
        cached.encode_prompt(images[:2], targets)
    with pytest.raises(ValueError, match="N of 1 or more"):
        cached.encode_prompt(images[:, :0], targets[:, :0])
    with pytest.raises(ValueError, match="kind must be"):
        cached.encode_prompt(images, targets, kind=["semantic"] * 2)
    with pytest.raises(ValueError, match="examples attend to the query"):
        random_model(TINY).double().encode_prompt(images, targets)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda a: {"query": a["query"][0]}, "query must be"),
        (lambda a: {"query": a["query"][:, :2]}, "query must be"),
        (lambda a: {"query": a["query"][..., :30]}, "not a multiple of the patch size 8"),
        (lambda a: {"example_images": a["example_images"][:1]}, "example_images must be"),
        (lambda a: {"example_images": a["example_images"][:, 0]}, "example_images must be"),
        (lambda a: {"example_targets": None}, "example_targets must be"),
        (lambda a: {"example_targets": a["example_targets"][:, :1]}, "example_targets must be"),
        (lambda a: {"query_target": a["query"][..., :8]}, "query_target must have the query's shape"),
        (lambda a: {"hidden": torch.ones(2, 15, dtype=torch.bool)}, "hidden must be bool of shape"),
        (lambda a: {"hidden": torch.ones(2, 16)}, "hidden must be bool of shape"),
        (lambda a: {"hidden": torch.zeros(2, 16, dtype=torch.bool)}, "must say what is painted"),
        (lambda a: {"kind": "panoptic"}, "kind must be one of"),
        (lambda a: {"kind": []}, "kind must be one of"),
        (lambda a: {"kind": ["semantic"] * 3}, "for each of 2 queries"),
        (lambda a: {"example_images": None, "example_targets": None}, "with no examples"),
        (lambda a: {"example_images": None, "query_target": a["query"]}, "give query_target and hidden"),
    ],
)
@torch.no_grad()
def test_error_messages(model, change, expected):
    query, images, targets = inputs(batch=2, count=2)
    arguments = {"query": query, "example_images": images, "example_targets": targets}
    with pytest.raises(ValueError, match=expected):
        model(**{**arguments, **change(arguments)})
