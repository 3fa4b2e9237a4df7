import itertools

import numpy as np
import pytest
from fake_models import example
from PIL import Image
from predictions import photo, predictor, same, tiny

from incontext.image import ImageError


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
@pytest.mark.parametrize("model", [tiny(), tiny(examples_attend_query=False)], ids=["attend", "cached"])
def test_a_batch_equals_a_loop_and_keeps_the_order(batch_size, model):
    images = [photo((20 + 7 * i, 50 - 5 * i), seed=i) for i in range(7)]
    examples = [example([1, 2]), example([2, 3], seed=4)]
    one = predictor(model)
    loop = [one.predict(image, examples) for image in images]
    many = list(predictor(model).predict_many(images, examples, batch_size=batch_size))
    assert [each.size for each in many] == [image.shape[:2] for image in images]
    for a, b in zip(loop, many, strict=True):
        assert (a.labels != b.labels).mean() < 0.01  # sums are rounded differently in other batch sizes
        np.testing.assert_allclose(a.confidence, b.confidence, atol=1e-4)


def test_images_may_be_paths_pil_images_and_arrays(tmp_path):
    image = photo()
    Image.fromarray(image).save(tmp_path / "q.png")
    shown = [example([1])]
    kinds = [tmp_path / "q.png", str(tmp_path / "q.png"), Image.fromarray(image), image]
    first, *rest = predictor(tiny()).predict_many(kinds, shown)
    for each in rest:
        same(first, each)


def test_predict_many_is_lazy_and_reads_a_bounded_number_ahead():
    taken = []

    def endless():
        for i in itertools.count():
            taken.append(i)
            yield photo(seed=i)

    results = predictor().predict_many(endless(), [example([1])], batch_size=2, threads=3)
    assert taken == []
    for i in range(1, 6):
        next(results)
        assert len(taken) <= i + 2 + 2 + 3
    results.close()


@pytest.mark.parametrize("bad", [0, 2, 5])
def test_an_unreadable_image_takes_its_place_or_stops_the_run(bad, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    images = [photo(seed=i) for i in range(6)]
    images[bad] = tmp_path / "bad.png"
    shown = [example([1])]
    found = list(predictor().predict_many(images, shown, batch_size=4, on_error="yield"))
    assert [i for i, each in enumerate(found) if isinstance(each, ImageError)] == [bad]
    assert "bad.png" in str(found[bad])
    got = []
    with pytest.raises(ImageError, match=r"bad\.png"):
        for each in predictor().predict_many(images, shown, batch_size=4):
            got.append(each)
    assert len(got) == bad  # all before it came through


def test_examples_are_prepared_once(monkeypatch):
    model = tiny(examples_attend_query=False)
    encoded = []
    encode = model.encode_prompt
    monkeypatch.setattr(model, "encode_prompt", lambda *a, **k: encoded.append(1) or encode(*a, **k))
    one, examples = predictor(model, ids_per_pass=1), [example([1]), example([1, 2], seed=3)]
    list(one.predict_many([photo(seed=i) for i in range(5)], examples, batch_size=2))
    assert len(encoded) == 2  # passes
    one.predict(photo(), examples)
    one.predict(photo(), list(examples))
    assert len(encoded) == 2
    one.predict(photo(), examples[::-1])  # another order, another prompt
    assert len(encoded) == 4
    prompt = one.prompt(examples)
    same(one.predict(photo(), prompt), one.predict(photo(), examples))
    one.predict(photo(), prompt)
    assert len(encoded) == 6
    del prompt
    assert len(one._painter._conditions) == 2  # what nobody holds is forgotten


def test_few_prompts_are_kept():
    one = predictor()
    for seed in range(9):
        one.predict(photo(), [example([1], seed=seed)])
    assert len(one._prompts) == len(one._painter._conditions) == 4
