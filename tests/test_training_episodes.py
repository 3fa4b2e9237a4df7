"""Episodes: what is asked for is shown, and nothing else is painted."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from small_sets import write, write_sets, write_sided

from incontext.cli.main import main
from incontext.training.augment import crop, jitter, random_box
from incontext.training.episodes import SMALLEST, EpisodeSampler, Mixture
from incontext.training.pack import Pack, Traits
from incontext.training.pack_writer import folder_items, pack_folders, write_pack
from incontext.training.stitching import join_labels, stitch_view
from incontext.training.superpixels import superpixels

SIZE = (32, 48)
ACROSS = dict.fromkeys(("views", "pasted", "rendered", "frames", "segments", "stitched"), 0.0)
SOURCES = {
    "across": ACROSS,
    "views": ACROSS | {"views": 1.0},
    "pasted": ACROSS | {"pasted": 1.0},
    "rendered": ACROSS | {"rendered": 1.0},
    "segments": ACROSS | {"segments": 1.0},
    "stitched": ACROSS | {"views": 0.3, "rendered": 0.2, "stitched": 1.0},
}


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    root = write_sets(tmp_path_factory.mktemp("sets"))
    return pack_folders(root, root.parent / "all.pack", quality=95)


def draw_many(pack, count, shots=1, weights=None, **mixture):
    sampler = EpisodeSampler(pack, Mixture(weights or {}, **mixture))
    return [sampler.draw(np.random.default_rng(seed), SIZE, shots) for seed in range(count)]


def shares(labels):
    return {int(id): (labels == id).mean() for id in np.unique(labels) if id not in (0, 255)}


@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("source", SOURCES)
def test_everything_asked_for_is_shown(pack, source, shots):
    for episode in draw_many(pack, 25, shots, **SOURCES[source]):
        assert episode.images.shape == (shots + 1, *SIZE, 3) and episode.images.dtype == np.uint8
        assert episode.labels.shape == (shots + 1, *SIZE) and episode.labels.dtype == np.uint8
        *examples, query = map(shares, episode.labels)
        wanted = set(range(1, episode.count + 1))
        assert 1 <= episode.count <= 8
        assert set().union(*examples, query) <= wanted
        for id in wanted:
            assert max(each.get(id, 0) for each in examples) >= SMALLEST
        assert max(query.values(), default=0) >= SMALLEST  # there is something to paint
        assert episode.kind in ("instance", "semantic")


def test_where_episodes_come_from(pack):
    found = {source: draw_many(pack, 25, **mixture) for source, mixture in SOURCES.items()}
    names = {source: {episode.source for episode in episodes} for source, episodes in found.items()}
    # Segments of bsds have numbers, not classes: they mean nothing across images.
    assert names == {
        "across": {"kinds", "red"},
        "views": {"kinds", "red", "bsds500_like"},
        "pasted": {"pasted"},
        "rendered": {"scenes"},
        "segments": {"segments"},
        "stitched": {"stitched"},
    }
    kinds = {source: {episode.kind for episode in episodes} for source, episodes in found.items()}
    assert kinds == {
        "across": {"semantic", "instance"},
        "views": {"instance"},
        "pasted": {"instance"},
        "rendered": {"semantic"},
        "segments": {"instance"},
        "stitched": {"semantic", "instance"},
    }


def resized(pack):
    """(image, labels, instances) of each record at SIZE, whole."""
    found = {}
    for index in range(len(pack)):
        record = pack[index]
        maps = [ids for ids in (record.labels, record.instances) if ids is not None]
        height, width = record.image.shape[:2]
        found[index] = crop(record.image, maps, (0, 0, width, height), SIZE)
    return found


def relabelling(maps, episode):
    """What each id of the maps became in the episode, or None where it became several things."""
    table = {}
    for ids, labels in zip(maps, episode.labels, strict=True):
        for id, label in zip(ids.flat, labels.flat, strict=True):
            if table.setdefault(int(id), int(label)) != label:
                return None
    return table


@pytest.mark.parametrize("source", ["across", "views"])
def test_distractors_are_background_and_ignored_pixels_stay_so(pack, source):
    """Without augmentation a view is a whole image, so that its record and its ids can be told."""
    records = resized(pack)
    distracted = 0
    for episode in draw_many(pack, 30, 2, augment=False, **SOURCES[source]):
        shown = []
        for image in episode.images:
            shown.append(next(index for index, (view, _) in records.items() if np.array_equal(view, image)))
        assert len(set(shown)) == (3 if source == "across" else 1)
        by_class, *by_instance = zip(*(records[index][1] for index in shown), strict=True)
        tables = [relabelling(maps, episode) for maps in (by_class, *(by_instance if source == "views" else ()))]
        wanted = list(range(1, episode.count + 1))
        fitting = []
        for table in filter(None, tables):
            assert table[0] == 0 and table[255] == 255
            if sorted(label for label in table.values() if label not in (0, 255)) == wanted:
                fitting.append(table)
        assert fitting  # each id became one label in all views, no two ids the same
        distracted += list(fitting[0].values()).count(0) > 1
    assert distracted > 5


def test_validation_asks_for_one_thing(pack):
    assert {episode.count for episode in draw_many(pack, 20, augment=False, **ACROSS)} == {1}


def test_the_most_things(pack):
    counts = {episode.count for episode in draw_many(pack, 40, largest_count=2, **ACROSS, weights={"red": 0})}
    assert counts == {1, 2}


def test_the_generator_decides_all(pack):
    sampler = EpisodeSampler(pack, Mixture({}, views=0.25, pasted=0.25, rendered=0.25))
    seen = set()
    for seed in range(12):
        first, second = (sampler.draw(np.random.default_rng(seed), SIZE) for _ in range(2))
        assert np.array_equal(first.images, second.images) and np.array_equal(first.labels, second.labels)
        assert (first.count, first.kind, first.source) == (second.count, second.kind, second.source)
        seen.add(first.images.tobytes())
    assert len(seen) == 12


def test_weights_of_sets(pack):
    sources = [episode.source for episode in draw_many(pack, 160, weights={"kinds": 3.0}, augment=False, **ACROSS)]
    assert 0.6 < sources.count("kinds") / len(sources) < 0.9  # 0.75, deviation 0.035
    left = {episode.source for episode in draw_many(pack, 30, weights={"kinds": 0.0}, **SOURCES["views"])}
    assert left == {"red", "bsds500_like"}


def test_a_set_that_is_left_out_is_no_background_either(pack):
    sampler = EpisodeSampler(pack, Mixture({"bare": 0.0, "red": 0.0}))
    assert sorted(sampler.backgrounds) == sorted(pack.sets["kinds"] + pack.sets["bsds500_like"])
    assert set(pack.sets["bare"]) <= set(EpisodeSampler(pack, Mixture({})).backgrounds)


def test_nothing_to_draw_from(pack):
    with pytest.raises(ValueError, match="no set with masks is left"):
        EpisodeSampler(pack, Mixture({"kinds": 0, "red": 0, "bsds500_like": 0}, **ACROSS))


def test_episodes_that_cannot_be(pack):
    sampler = EpisodeSampler(pack, Mixture({}, **ACROSS))
    with pytest.raises(ValueError, match="no episode with 9 examples"):  # of sets of five images
        sampler.draw(np.random.default_rng(0), SIZE, shots=9)


@pytest.mark.parametrize("source", ["across", "views"])
def test_sets_that_tell_left_from_right_are_known(source, tmp_path):
    """By the names of well-known sets, or as they were packed."""
    for name in ("car_parts_train", "sided"):
        write_sided(tmp_path / name, name)
        pack = pack_folders(tmp_path / name, tmp_path / f"{name}.pack")
        assert {episode.handed for episode in draw_many(pack, 5, **SOURCES[source])} == {name != "sided"}
    items = folder_items(tmp_path / "sided")
    pack = write_pack(items, tmp_path / "told.pack", traits={"sided": Traits(handed=True)})
    assert all(episode.handed for episode in draw_many(pack, 5, **SOURCES[source]))


@pytest.mark.parametrize("source", [name for name in SOURCES if name != "across"])
def test_without_examples_the_query_alone_is_shown(pack, source):
    for episode in draw_many(pack, 15, shots=0, **SOURCES[source]):
        assert episode.images.shape == (1, *SIZE, 3)
        assert set(shares(episode.labels)) == set(range(1, episode.count + 1)) or source in ("pasted", "stitched")
        assert max(shares(episode.labels).values()) >= SMALLEST


def write_clips(root):
    """Frame k of video v is all of the colour (k, v), object 1 + v in it."""
    for video in range(2):
        for frame in range(6):
            folder = root / "clips" / str(video)
            image = np.full((32, 48, 3), (40 * frame, 200 * video, 0), np.uint8)
            labels = np.zeros((32, 48), np.uint8)
            labels[8:24, 8:40] = 1 + video
            write(folder / "frames" / f"{frame:05}.png", image)
            write(folder / "masks" / f"{frame:05}.png", labels)


def test_frames_of_a_video_are_apart_in_time(tmp_path):
    write_clips(tmp_path)
    pack = pack_folders(tmp_path, tmp_path / "clips.pack")
    for episode in draw_many(pack, 15, shots=3, **ACROSS | {"frames": 1.0, "augment": False}):
        colours = episode.images.reshape(4, -1, 3).astype(int).mean(1)
        assert np.ptp(colours[:, 1]) < 10  # one video
        assert np.diff(np.sort(colours[:, 0])).min() > 20  # four different frames
        assert episode.kind == "instance" and episode.source == "clips"
    assert EpisodeSampler(pack, Mixture({})).by_class == {}  # object 1 of two videos is not the same


def test_ids_of_videos_are_objects_unless_they_have_names(tmp_path):
    write_clips(tmp_path)
    command, out = ["train", "pack", str(tmp_path), "-o"], tmp_path / "clips.pack"
    assert main([*command, str(out), "--handed", "clips"]) == 0
    assert Pack(out).traits("clips") == Traits(segments=True, handed=True)
    assert main([*command, str(out), "--numbered", "clips"]) == 0  # all of one class
    assert list(EpisodeSampler(Pack(out), Mixture({})).by_class["clips"]) == [1]
    (tmp_path / "clips" / "classes.txt").write_text("1 cat\n2 dog\n")
    sampler = EpisodeSampler(pack_folders(tmp_path, out), Mixture({}))
    assert list(sampler.by_class["clips"]) == [1, 2] and len(sampler.videos["clips"]) == 2


def test_stitched_views_show_several_contexts_under_one_colour_map():
    rng = np.random.default_rng(0)
    labels = [np.full((8, 12), value, np.uint8) for value in (1, 2, 255, 0)]
    joined, total = join_labels(labels, (1, 2, 0, 3), largest=8)
    assert total == 6 and [ids.max() for ids in joined] == [1, 3, 255, 0]
    joined, total = join_labels(labels, (1, 2, 0, 3), largest=2)  # the second's id 2 is a third thing
    assert total == 2 and [ids.max() for ids in joined] == [1, 0, 255, 0]
    images = [np.full((8, 12, 3), 60 * k, np.uint8) for k in range(4)]
    numbers = [np.full((8, 12), k, np.uint8) for k in range(4)]
    for _ in range(10):
        view, ids = stitch_view(rng, images, numbers, (2, 2), (16, 24))
        assert set(np.unique(ids)) == {0, 1, 2, 3}
        inner = [ids == k for k in range(4)]
        assert all(abs(view[mask].mean() - 60 * k) < 12 for k, mask in enumerate(inner))


def test_superpixels_are_connected_and_follow_edges():
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 30:] = (200, 40, 40)
    image[10:20, 5:15] = (40, 200, 40)
    noise = np.random.default_rng(0).integers(0, 8, image.shape)
    found = superpixels((image + noise).astype(np.uint8), scale=1.0, least=20)
    assert np.array_equal(np.unique(found), np.arange(1, found.max() + 1))
    assert found.max() < 12  # the three things, and strips along blurred edges
    sizes = np.bincount(found.ravel())[1:]
    assert list(sizes) == sorted(sizes, reverse=True)
    truth = [np.s_[:, 33:], np.s_[25:, :27], np.s_[12:18, 7:13]]
    assert [len(np.unique(found[part])) for part in truth] == [1, 1, 1]
    assert len({int(found[part].flat[0]) for part in truth}) == 3
    small = superpixels((image + noise).astype(np.uint8), scale=1.0, least=200)
    assert np.bincount(small.ravel())[1:].min() >= 200


def test_workers_get_a_sampler_without_its_bytes(pack):
    sampler = EpisodeSampler(pack, Mixture({}))
    sent = pickle.dumps(sampler)
    assert len(sent) < pack.path.stat().st_size / 2
    first, second = (each.draw(np.random.default_rng(3), SIZE) for each in (sampler, pickle.loads(sent)))
    assert np.array_equal(first.images, second.images) and np.array_equal(first.labels, second.labels)


def test_crops():
    rng = np.random.default_rng(0)
    for _ in range(200):
        left, top, right, bottom = random_box(rng, (40, 80), area=(0.3, 0.9), stretch=0.4)
        assert 0 <= left < right <= 80 and 0 <= top < bottom <= 40
        assert (right - left) * (bottom - top) <= 0.9 * 3200 + 1e-6
    image = rng.integers(0, 256, (40, 80, 3), np.uint8)
    ids = image[..., 0] // 64
    view, (cut,) = crop(image, [ids], (10, 5, 50, 25), (20, 40))
    assert np.array_equal(view, image[5:25, 10:50])  # same scale: nothing to interpolate
    assert np.array_equal(cut, ids[5:25, 10:50])


def test_jitter():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (8, 8, 3), np.uint8)
    assert np.abs(jitter(rng, image, 0.0).astype(int) - image).max() <= 1  # rounding
    changed = jitter(rng, image)
    assert changed.dtype == np.uint8 and np.abs(changed.astype(int) - image).mean() > 2
