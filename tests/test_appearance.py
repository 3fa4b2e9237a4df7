import numpy as np
import pytest
import torch
import torch.nn.functional as F
from packs import small_pack
from predictions import predictor, tiny

from incontext.appearance import DETAIL, KEYS, SHARPNESS, Appearance, Sample, _attend, detail_of, pixel_features
from incontext.pack.compiling import compile_pack
from incontext.prompt import Prompt
from incontext.refinement import RARE, Likeness, working_size
from incontext.types import IGNORE, Example

CPU = torch.device("cpu")
PATCH = (8.0, 8.0)


def picture(rng: np.random.Generator, labels: np.ndarray, colours: dict[int, tuple[int, int, int]]) -> np.ndarray:
    """Paints each label in its colour, with noise."""
    image = np.zeros((*labels.shape, 3))
    for label, colour in colours.items():
        image[labels == label] = colour
    return (image + rng.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)


def blocks(seed: int, ids=(0, 1, 2), size=(64, 96), side=16) -> np.ndarray:
    """Labels in random blocks."""
    small = np.random.default_rng(seed).choice(ids, (size[0] // side, size[1] // side))
    small.flat[: len(ids)] = ids
    return np.kron(small, np.ones((side, side), int)).astype(np.int32)


def lines(width: int = 1, step: int = 8, size=(64, 96)) -> np.ndarray:
    """Lines that are thinner than a patch."""
    return np.broadcast_to((np.arange(size[1]) % step < width).astype(np.int32), size).copy()


COLOURS = {0: (90, 90, 90), 1: (200, 60, 50), 2: (60, 80, 190)}


def shown(labels: np.ndarray, ids=(1, 2), colours=COLOURS, seed: int = 0) -> Sample:
    return Sample.of(picture(np.random.default_rng(seed), labels, colours), labels, ids, PATCH, CPU)


def learn(*labels: np.ndarray, ids=(1, 2), **options) -> Appearance | None:
    return Appearance.of(ids, [shown(each, ids, seed=k) for k, each in enumerate(labels)], **options)


def find(appearance: Appearance, image: np.ndarray) -> Likeness:
    return appearance.find(pixel_features(image, 8.0, CPU))


def weights(appearance: Appearance, labels: np.ndarray, colours=COLOURS) -> torch.Tensor:
    """How much it counts in a query that shows these labels."""
    return find(appearance, picture(np.random.default_rng(8), labels, colours)).weights


def test_attention_is_the_kernel_regression_that_it_claims_to_be():
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(7, 5, generator=generator), torch.randn(9, 5, generator=generator)
    values = torch.rand(9, 3, generator=generator)
    distances = torch.cdist(queries.double(), keys.double())
    weights = torch.softmax(-(distances**2) / (2 * SHARPNESS**2), 1)
    torch.testing.assert_close(
        _attend(queries, keys, values), (weights @ values.double()).float(), atol=1e-4, rtol=1e-4
    )


def test_colours_are_found_wherever_they_are():
    appearance = learn(blocks(1))
    truth = blocks(2)
    found = find(appearance, picture(np.random.default_rng(9), truth, COLOURS))
    guesses = F.interpolate(found.shares[None], truth.shape, mode="bilinear")[0].argmax(0).numpy()
    assert (guesses == truth).mean() > 0.95
    assert found.shares.shape[1:] == working_size(truth.shape, 8.0)
    torch.testing.assert_close(found.shares.sum(0), torch.ones(found.shares.shape[1:]), atol=1e-4, rtol=0)


def test_what_looks_like_its_background_counts_little():
    clear = learn(blocks(1))
    hidden = {**COLOURS, 1: COLOURS[0]}
    unclear = Appearance.of((1, 2), [shown(blocks(1), colours=hidden)])
    found, lost = weights(clear, blocks(2)), weights(unclear, blocks(2), hidden)
    assert lost[1] < 0.7 * found[1]
    assert float(lost[2]) == pytest.approx(float(found[2]), abs=0.15)


def test_what_patches_cannot_hold_is_left_to_appearance():
    assert weights(learn(lines(), ids=(1,)), lines())[1] > 0.95
    assert weights(learn(blocks(1)), blocks(2))[1] < 0.8


def test_with_several_examples_an_id_must_be_found_across_them():
    first, second = blocks(1), blocks(2)
    other = {**COLOURS, 0: COLOURS[1], 1: COLOURS[0]}  # it looks as the background does in the first
    alike = Appearance.of((1, 2), [shown(first), shown(second)])
    unlike = Appearance.of((1, 2), [shown(first), shown(second, colours=other)])
    assert unlike.found[1] < 0.5 * alike.found[1]


def test_ignored_pixels_and_unshown_ids():
    labels = blocks(1)
    labels[:32] = IGNORE
    appearance = learn(labels, ids=(1, 2, 7))
    assert len(appearance.keys) <= 32 * 96
    assert weights(appearance, blocks(2))[3] == 0  # nothing is known of id 7: the model alone decides
    assert learn(np.full((64, 96), IGNORE, np.int32)) is None


def test_other_ids_are_background():
    appearance = learn(blocks(1), ids=(2,))
    assert appearance.values.shape[1] == 2
    torch.testing.assert_close(appearance.values.sum(1), torch.ones(len(appearance.values)))


def test_many_examples_keep_no_more_pixels():
    assert len(learn(*(blocks(k) for k in range(8))).keys) <= KEYS


def test_a_flat_picture_teaches_nothing_and_breaks_nothing():
    labels = blocks(1)
    flat = Sample.of(np.full((64, 96, 3), 77, np.uint8), labels, (1, 2), PATCH, CPU)
    appearance = Appearance.of((1, 2), [flat], placed=False)
    found = find(appearance, np.full((40, 50, 3), 77, np.uint8))
    assert found.shares.isfinite().all()
    torch.testing.assert_close(found.shares, found.shares[:, :1, :1].expand_as(found.shares))


def test_without_places_a_query_may_be_mirrored():
    appearance = learn(blocks(1), placed=False)
    image = picture(np.random.default_rng(9), blocks(2), COLOURS)
    plain, mirrored = find(appearance, image).shares, find(appearance, image[:, ::-1].copy()).shares.flip(-1)
    torch.testing.assert_close(plain, mirrored, atol=1e-3, rtol=0)


def test_joining_goes_from_one_opinion_to_the_other():
    model = torch.tensor([0.7, 0.1, 0.2])[:, None, None]
    shares = torch.tensor([0.3, 0.5, 0.2])[:, None, None]
    for weight, expected in ((0.0, model), (1.0, shares)):
        likeness = Likeness((4, 6), shares, torch.full((3,), weight), torch.full((3,), 0.4))
        torch.testing.assert_close(likeness.join(model, (4, 6)), (expected + 0.005) / 1.015)
        torch.testing.assert_close(likeness.join(model[[0, 2, 1]], (6, 4)), likeness.join(model, (4, 6))[[0, 2, 1]])


def test_joining_favours_what_is_rare():
    even = torch.full((3, 1, 1), 1 / 3)
    likeness = Likeness((4, 6), even, torch.full((3,), 0.5), torch.tensor([0.9, 0.09, 0.01]))
    joined = likeness.join(even, (4, 6))[:, 0, 0]
    assert float(joined[2] / joined[1]) == pytest.approx(9**RARE)
    assert float(joined.sum()) == pytest.approx(1)


def test_a_query_unlike_the_examples_is_left_to_the_model():
    appearance = learn(blocks(1))
    near, far = (
        weights(appearance, blocks(2)),
        weights(appearance, blocks(2), {0: (20, 200, 30), 1: (250, 250, 0), 2: 3 * (0,)}),
    )
    assert (far < 0.7 * near).all()


def test_other_light_does_not_change_what_is_found():
    """Lines stand out by less than the light changes between the pictures."""
    truth = lines(width=6, step=24)
    dark, light = {0: 3 * (80,), 1: 3 * (110,)}, {0: 3 * (115,), 1: 3 * (145,)}
    sample = Sample.of(picture(np.random.default_rng(0), truth, dark), truth, (1,), PATCH, CPU)
    found = find(Appearance.of((1,), [sample], placed=False), picture(np.random.default_rng(1), truth, light))
    guesses = F.interpolate(found.shares[None], truth.shape, mode="bilinear")[0].argmax(0).numpy() == 1
    assert (guesses & (truth == 1)).sum() / (guesses | (truth == 1)).sum() > 0.6


def test_thin_objects_are_looked_at_in_finer_steps():
    times, least = DETAIL
    assert detail_of(float("inf")) == detail_of(5.0) == 1
    assert detail_of(0.01) == least
    assert detail_of(0.8 / times) == pytest.approx(0.8, rel=0.1)
    labels = lines(width=6, step=48, size=(256, 384))
    one, example = predictor(tiny(), refine=True), Example(picture(np.random.default_rng(0), labels, COLOURS), labels)
    query = picture(np.random.default_rng(1), labels, COLOURS)
    wide = Example(query, blocks(1, size=query.shape[:2], side=64))
    fine, coarse = (one.refinement(query, one.prompt([each])) for each in (example, wide))
    assert fine.patch < 0.5 * coarse.patch
    assert fine.radius == 0 and coarse.radius > 0
    found = one.predict(query, example).labels
    assert ((found == 1) & (labels == 1)).sum() / ((found == 1) | (labels == 1)).sum() > 0.8


def test_a_refining_predictor_finds_what_is_thinner_than_a_patch():
    labels = lines(width=4, step=12)  # patches are 16 x 24
    shown_to_it = Example(picture(np.random.default_rng(0), labels, COLOURS), labels)
    query = picture(np.random.default_rng(1), labels, COLOURS)
    found = {refine: predictor(tiny(), refine=refine).predict(query, shown_to_it) for refine in (False, True)}
    right = {refine: (each.labels == labels).mean() for refine, each in found.items()}
    assert right[True] > 0.95 > right[False]


def test_the_pixels_of_an_example_are_taken_once(monkeypatch):
    calls = []
    plain = Sample.of
    monkeypatch.setattr(Sample, "of", lambda *args: calls.append(1) or plain(*args))
    one = predictor(tiny(), refine=True)
    examples = [Example(picture(np.random.default_rng(k), blocks(k), COLOURS), blocks(k)) for k in range(3)]
    for count in (1, 2, 3):
        one.predict(examples[0].image, examples[:count])
    assert len(calls) == 3


def test_shapes_are_held_down_to_half_a_patch():
    def held(width: int) -> float:
        labels = lines(width, step=5 * width)
        return float(Sample.of(picture(np.random.default_rng(0), labels, COLOURS), labels, (1,), PATCH, CPU).held[0])

    half = int(PATCH[0] / 2)
    assert held(half) > 0.9 and held(half // 2) < 0.1


def test_packs_that_share_no_class_are_compared_with_apart():
    model = tiny()
    first, second = small_pack(model, ["cell"], "a"), small_pack(model, ["vessel"], "b")
    groups = Prompt.build([first, second], 6).groups()
    assert [ids for ids, _, _ in groups] == [frozenset(pack.ids) for pack in Prompt.build([first, second], 6).packs]
    assert [len(packs) for _, _, packs in groups] == [1, 1]
    assert len(Prompt.build([first, small_pack(model, ["cell"], "c")], 6).groups()) == 1


def test_pairs_of_a_pack_are_its_pictures_and_ids():
    model = tiny()
    given = Example(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8), blocks(1, size=(32, 32)))
    named = Example(given.image, given.labels, {1: "one", 2: "two"})
    ((image, labels),) = compile_pack(model, [named], "p").pairs
    assert np.array_equal(labels, given.labels)
    assert np.abs(image.astype(int) - given.image).max() <= 1
