import numpy as np
import pytest
import torch

from incontext.decoding import Decoder
from incontext.palette import DEFAULT_TEMPERATURE, Palette
from incontext.refinement import GuidedFilter, Likeness, Refinement


def picture(edge: int, size=(48, 64)) -> np.ndarray:
    """Dark left of a column, bright right of it."""
    image = np.full((*size, 3), 40, np.uint8)
    image[:, edge:] = (200, 180, 160)
    return image


def refine(image: np.ndarray, probabilities: torch.Tensor, patch: float = 7.5) -> torch.Tensor:
    refinement = Refinement(image, patch)
    return refinement.apply(refinement.fit(probabilities), slice(0, image.shape[0]))


def two(front: torch.Tensor) -> torch.Tensor:
    return torch.stack((1 - front, front))


def test_a_border_beside_an_edge_moves_onto_it():
    image = picture(edge=30)
    front = torch.zeros(48, 64)
    front[:, 32:] = 1  # two pixels late
    labels = refine(image, two(front)).argmax(0)
    assert torch.equal(labels, torch.from_numpy(image[..., 0] > 100).long())


def test_where_the_picture_is_flat_a_border_stays():
    front = torch.zeros(48, 64)
    front[:, 32:] = 1
    labels = refine(np.full((48, 64, 3), 90, np.uint8), two(front)).argmax(0)
    assert torch.equal(labels, front.long())


def test_certainty_stays_certain():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)
    for value in (0.0, 1.0):
        out = refine(image, two(torch.full((40, 56), value)))
        torch.testing.assert_close(out[1], torch.full((40, 56), value), atol=1e-4, rtol=0)


def test_probabilities_stay_probabilities():
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (37, 51, 3), dtype=np.uint8)
    given = torch.softmax(5 * torch.randn(4, 37, 51, generator=torch.Generator().manual_seed(0)), 0)
    out = refine(image, given)
    assert out.min() >= 0
    torch.testing.assert_close(out.sum(0), torch.ones(37, 51))


def test_linear_functions_of_colour_are_found_exactly():
    generator = torch.Generator().manual_seed(3)
    guide = torch.rand(3, 30, 40, generator=generator)
    values = (0.2 * guide[0] - 0.5 * guide[1] + 0.1 * guide[2] + 0.3)[None]
    coefficients = GuidedFilter(guide, radius=4, smoothness=1e-9).fit(values)
    expected = torch.tensor([0.2, -0.5, 0.1, 0.3]).view(4, 1, 1, 1).expand(4, 1, 30, 40)
    torch.testing.assert_close(coefficients, expected, atol=1e-3, rtol=0)


def test_strips_equal_the_whole():
    rng = np.random.default_rng(2)
    image = rng.integers(0, 256, (61, 45, 3), dtype=np.uint8)
    refinement = Refinement(image, patch=30.0)
    assert refinement.working_size < (61, 45)
    fitted = refinement.fit(two(torch.rand(refinement.working_size, generator=torch.Generator().manual_seed(1))))
    whole = refinement.apply(fitted, slice(0, 61))
    parts = [refinement.apply(fitted, slice(top, top + 16)) for top in range(0, 61, 16)]
    torch.testing.assert_close(torch.cat(parts, 1), whole)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (300, 7)])
@pytest.mark.parametrize("patch", [0.5, 8.0, 400.0])
def test_any_size_of_picture_and_patch(size, patch):
    image = np.zeros((*size, 3), np.uint8)
    refinement = Refinement(image, patch)
    out = refinement.apply(refinement.fit(two(torch.ones(refinement.working_size))), slice(0, size[0]))
    torch.testing.assert_close(out[1], torch.ones(size), atol=1e-4, rtol=0)


def test_the_decoder_follows_the_edges_too():
    image = picture(edge=30)
    palette = Palette.for_ids((5,))
    wrong = np.zeros((48, 64), np.int32)
    wrong[:, 32:] = 5
    painting = torch.from_numpy(palette.paint(wrong)).movedim(-1, 0).float()
    found = {}
    for refinement in (None, Refinement(image, 7.5)):
        decoder = Decoder((48, 64), (palette,), torch.device("cpu"), DEFAULT_TEMPERATURE, refinement)
        decoder.add([painting])
        found[refinement is None] = decoder.finish({}).labels
    assert np.array_equal(found[True], wrong)
    assert np.array_equal(found[False] == 5, image[..., 0] > 100)


def test_passes_join_with_what_pixels_look_like():
    """All ids of a likeness at once; another id, which none knows, as its pass says."""
    generator = torch.Generator().manual_seed(0)
    size = (24, 32)
    shares = torch.softmax(torch.randn(3, *size, generator=generator), 0)
    likeness = Likeness((2, 5), shares, torch.tensor([0.3, 0.2, 0.6]), torch.tensor([0.7, 0.2, 0.1]))
    refinement = Refinement(np.zeros((*size, 3), np.uint8), 1.0, likenesses=(likeness,), width=0.0)
    palettes = [Palette.for_ids((id,)) for id in (5, 9, 2)]
    paintings = [255 * torch.rand(3, *size, generator=generator) for _ in palettes]
    decoder = Decoder(size, palettes, torch.device("cpu"), DEFAULT_TEMPERATURE, refinement)
    for painting in paintings:
        decoder.add([painting])
    found = decoder.finish({})

    five, nine, two = (
        palette.probabilities(each, DEFAULT_TEMPERATURE) for palette, each in zip(palettes, paintings, strict=True)
    )
    merged = torch.stack([torch.minimum(five[0], two[0]), two[1], five[1]])
    joined = likeness.join(merged / merged.sum(0), (2, 5))
    expected = torch.stack([torch.minimum(joined[0], nine[0]), joined[1], joined[2], nine[1]])
    expected = expected / expected.sum(0)
    assert np.array_equal(found.labels, np.array([0, 2, 5, 9])[expected.argmax(0)])
    assert np.abs(found.confidence - expected.amax(0).numpy()).max() < 1e-5
