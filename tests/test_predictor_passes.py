"""Passes that are painted together: the same as one by one, in fewer and larger runs of the model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from fake_models import example
from packs import cached_model, small_pack
from predictions import photo, same, tiny

from incontext.model.seggpt import SegGPT
from incontext.pack.tokens import token_shape
from incontext.painter import Manner, Painter
from incontext.predictor import Predictor
from incontext.prompt import Prompt

SIZE = (48, 40)


@pytest.fixture(scope="module")
def model():
    return cached_model()


def prompts(model):
    """One example for all passes; three, of which passes show one, two or all; packs with tokens and without."""
    tokens = torch.randn(2, *token_shape(model.config), generator=torch.Generator().manual_seed(0)).half()
    plain = small_pack(model, ["cell", "nucleus", "wall"], ids_per_pass=1)
    return {
        "one example": [example(range(1, 8), SIZE)],
        "several": [example((1, 2, 3), SIZE, 1), example((2, 3, 4), SIZE, 2), example((1, 2, 3, 4, 5), SIZE, 3)],
        "pack": [plain],
        "tokens": [dataclasses.replace(plain, tokens=tokens)],
    }


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("which", ["one example", "several", "pack", "tokens"])
def test_together_as_one_by_one(model, which, flip):
    prompt = Prompt.build(prompts(model)[which], 1)
    crops = np.random.default_rng(0).integers(0, 256, (2, *model.config.image_size, 3), np.uint8)
    manner = Manner("feature", flip, "instance", 8)
    together, alone = Painter(model, torch.device("cpu")), Painter(model, torch.device("cpu"))
    painted = together.paint_passes(crops, prompt, manner)
    assert len(painted) == len(prompt.palettes) > 1
    for index, views in enumerate(painted):
        expected = alone.paint(crops, prompt, index, manner)
        assert views.shape == expected.shape == (1 + flip, 2, 3, *model.config.image_size)
        torch.testing.assert_close(views, expected, atol=2e-3, rtol=1e-4)


def test_many_classes_take_few_runs(model, monkeypatch):
    """At most `batch_size` canvases at once, encoding among them, and one image for all."""
    sizes = []
    run, encode = SegGPT.forward_passes, SegGPT.encode_prompt

    def count_and_run(self, query, caches):
        sizes.append(len(caches))
        return run(self, query, caches)

    def count_and_encode(self, images, targets, **options):
        assert len(images) == 1
        sizes.append(-len(targets))
        return encode(self, images, targets, **options)

    monkeypatch.setattr(SegGPT, "forward_passes", count_and_run)
    monkeypatch.setattr(SegGPT, "encode_prompt", count_and_encode)
    Predictor(model, device="cpu", ids_per_pass=1).predict(photo(), [example(range(1, 12), SIZE)], batch_size=4)
    assert [each for each in sizes if each > 0] == [4, 4, 3]
    assert [-each for each in sizes if each < 0] == [4, 4, 3]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_the_batch_size_changes_nothing(model, batch_size):
    shown, images = [example((1, 2, 3, 4), SIZE)], [photo(seed=k) for k in range(3)]
    one = Predictor(model, device="cpu", ids_per_pass=1)
    found = list(one.predict_many(images, shown, batch_size=batch_size))
    for image, result in zip(images, found, strict=True):
        same(result, Predictor(model, device="cpu", ids_per_pass=1).predict(image, shown, batch_size=1))


def test_what_does_not_fit_together_is_refused(model):
    queries = torch.zeros(1, 3, *model.config.image_size)
    images = torch.zeros(2, 1, 3, *model.config.image_size)
    both = model.encode_prompt(images, images)
    without = dataclasses.replace(both.split()[0], target=None)
    for caches in ([both], [both.split()[0], without]):
        with pytest.raises(ValueError, match="expected prompts for any query"):
            model.forward_passes(queries, caches)


def test_models_that_attend_to_the_query_paint_pass_by_pass():
    model = tiny()
    prompt = Prompt.build([example((1, 2, 3), SIZE)], 1)
    crops = np.random.default_rng(0).integers(0, 256, (1, *model.config.image_size, 3), np.uint8)
    manner = Manner("feature", False, "instance", 8)
    painter = Painter(model, torch.device("cpu"))
    for index, views in enumerate(painter.paint_passes(crops, prompt, manner)):
        assert torch.equal(views, painter.paint(crops, prompt, index, manner))


def test_splitting_undoes_a_batch(model):
    generator = torch.Generator().manual_seed(0)
    images, targets = (torch.randn(3, 2, 3, *model.config.image_size, generator=generator) for _ in range(2))
    for index, part in enumerate(model.encode_prompt(images, targets).split()):
        alone = model.encode_prompt(images[index : index + 1], targets[index : index + 1])
        for kept, expected in zip(part.layers, alone.layers, strict=True):
            torch.testing.assert_close(kept.key, expected.key, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(kept.value, expected.value, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(part.target, alone.target, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(part.border, alone.border, atol=1e-4, rtol=1e-4)
