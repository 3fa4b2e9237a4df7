"""Rendered scenes: deterministic, and their truth is the truth."""

import numpy as np
import pytest

from incontext.scenes import COLOURS, KINDS, TASKS, TOP, Wish, compose, random_task, render_scene, task_labels
from incontext.scenes.render import render
from incontext.scenes.shadow import ShadowMap
from incontext.scenes.solids import Paint, Solid, hull
from incontext.scenes.stage import Backdrop, Stage

SIZE = (64, 80)
GREY = (0.5, 0.5, 0.5)


def stage(light=(0.0, 1.0, 0.0), **changes) -> Stage:
    look = Backdrop("plain", GREY, GREY, 1.0)
    settings = dict(
        azimuth=0.0,
        elevation=0.6,
        zoom=1.0,
        light=np.array(light) / np.linalg.norm(light),
        spread=0.0,
        ambient=0.3,
        ground=look,
        wall=look,
        wall_z=30.0,
        haze=0.0,
        noise=np.zeros((64, 64), np.float32),
    )
    return Stage(**{**settings, **changes})


def solid(kind="sphere", x=0.0, z=0.0, radius=1.0, height=2.0, angle=0.0) -> Solid:
    return Solid(kind, "red", x, z, radius, height, angle, Paint(albedo=(0.7, 0.1, 0.1)))


def test_equal_generators_give_equal_scenes():
    first, second = (render_scene(np.random.default_rng(7), SIZE, task="kinds") for _ in range(2))
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.objects, second.objects)
    other = render_scene(np.random.default_rng(8), SIZE, task="kinds")
    assert not np.array_equal(first.image, other.image)


def test_maps_agree_with_each_other():
    scene = render_scene(np.random.default_rng(1), SIZE)
    assert scene.image.shape == (*SIZE, 3) and scene.image.dtype == np.uint8
    assert scene.size == SIZE
    on_object = scene.objects > 0
    assert np.array_equal(on_object, scene.faces > 0)
    assert np.array_equal(on_object, scene.surface == 0)
    assert not (scene.shadow & on_object).any()
    assert scene.objects.max() <= len(scene.solids)


@pytest.mark.parametrize("task", ["biggest red sphere", "spheres", "red things", "shadows", "top faces", "contours"])
def test_a_scene_for_a_task_shows_it(task):
    for seed in range(3):
        scene = render_scene(np.random.default_rng(seed), SIZE, task=task)
        labels = task_labels(scene, task)
        assert labels.dtype == np.int32 and labels.shape == SIZE
        assert set(np.unique(labels)) == {0, 1}


def test_kinds_and_colours_have_fixed_ids():
    scene = render_scene(np.random.default_rng(2), SIZE, task="kinds")
    kinds, colours = task_labels(scene, "kinds"), task_labels(scene, "colours")
    for i, s in enumerate(scene.solids, start=1):
        at = scene.objects == i
        assert (kinds[at] == KINDS.index(s.kind) + 1).all()
        assert (colours[at] == list(COLOURS).index(s.colour) + 1).all()
    assert TASKS["kinds"].names == {i: kind for i, kind in enumerate(KINDS, start=1)}


def test_the_biggest_is_one_object_and_truly_the_biggest():
    for seed in range(4):
        scene = render_scene(np.random.default_rng(seed), SIZE, task="biggest red sphere")
        (index,) = np.unique(scene.objects[task_labels(scene, "biggest red sphere") == 1])
        red = [s.radius for s in scene.solids if (s.kind, s.colour) == ("sphere", "red")]
        assert len(red) >= 2
        assert scene.solids[index - 1].radius == max(red) > 1.3 * sorted(red)[-2]


def test_contours_run_along_the_outline_of_one_sphere():
    scene = render([solid()], stage(), (64, 64))
    band, inside = task_labels(scene, "contours") == 1, scene.objects == 1
    shrunk = inside[1:-1, 1:-1] & inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    edge = inside.copy()
    edge[1:-1, 1:-1] &= ~shrunk
    assert band[edge].all()
    assert band.sum() < 0.4 * inside.sum()


def test_a_sphere_is_a_disk_of_the_right_size():
    scene = render([solid()], stage(), (101, 101))
    rows, columns = np.nonzero(scene.objects)
    # the camera leaves a tenth of the picture free around the bounding sphere
    assert abs(np.ptp(rows) - 0.9 * 101) <= 2.5 and abs(np.ptp(columns) - 0.9 * 101) <= 2.5
    assert scene.objects.astype(bool).sum() == pytest.approx(np.pi * (0.45 * 101) ** 2, rel=0.03)


def test_top_faces_are_flat_tops_of_cubes_only():
    solids = [solid("cube", x=-2, radius=0.8, height=1.6), solid("cylinder", x=2, radius=0.8, height=1.6)]
    scene = render(solids, stage(), (64, 96))
    tops = task_labels(scene, "top faces") == 1
    assert tops.any() and np.unique(scene.objects[tops]).tolist() == [1]
    assert (scene.faces[scene.objects == 2] == TOP).any()


def test_light_from_above_casts_the_shadow_under_the_solid():
    shadow = ShadowMap([solid("cube", radius=1.0, height=2.0)], stage(), detail=128)
    x, z = np.array([0.0, 0.8, 1.3, -1.3]), np.array([0.0, 0.8, 0.0, 0.0])
    sun, _ = shadow.at(x, z)
    assert (sun[:2] < 0.1).all() and (sun[2:] > 0.9).all()


def test_slanted_light_moves_the_shadow_away_from_it():
    """A post of height 2 under light from the right at 45 degrees: its top's shadow falls 2 to the left."""
    shadow = ShadowMap([solid("cylinder", radius=0.2, height=2.0)], stage(light=(1.0, 1.0, 0.0)), detail=256)
    sun, _ = shadow.at(np.array([-1.0, -1.9, -2.5, 1.0]), np.zeros(4))
    assert sun[0] < 0.2 and sun[1] < 0.2 and sun[2] > 0.9 and sun[3] > 0.9


def test_shadow_pixels_are_darker_than_the_lit_ground():
    scene = render([solid("cylinder", radius=0.5, height=2.5)], stage(light=(1.0, 1.0, -0.2)), (96, 128))
    lit = (scene.surface == 1) & ~scene.shadow
    assert scene.shadow.sum() > 100
    assert scene.image[scene.shadow].mean() < 0.75 * scene.image[lit].mean()


@pytest.mark.parametrize("kind", KINDS)
def test_rays_meet_solids_on_their_surface(kind):
    """Straight down through the middle the top is hit, and a ray beside the solid misses."""
    s = solid(kind, radius=0.7, height=1.4 if kind == "sphere" else 1.8, angle=0.4)
    down = [np.zeros(2, np.float32), np.full(2, -1, np.float32), np.zeros(2, np.float32)]
    distance, normal, _ = s.meet([np.array([0.001, 2.0]), 5.0, np.array([0.001, 0.0])], down)
    assert distance[0] == pytest.approx(5.0 - s.height, abs=0.01)
    assert np.isinf(distance[1])
    assert normal[1][0] > 0
    assert sum(float(n[0]) ** 2 for n in normal) == pytest.approx(1.0, abs=1e-4)


def test_hull_drops_inner_points():
    corners = hull(np.array([[0, 0], [2, 0], [2, 2], [0, 2], [1, 1], [1, 0]]))
    assert sorted(corners) == [(0, 0), (0, 2), (2, 0), (2, 2)]


def test_wishes_come_true():
    scene = compose(
        np.random.default_rng(0), SIZE, wishes=(Wish("cone", "cyan", 0.8), Wish(colour="white")), count=(2, 2)
    )
    assert (scene.solids[0].kind, scene.solids[0].colour, scene.solids[0].radius) == ("cone", "cyan", 0.8)
    assert scene.solids[1].colour == "white"


def test_random_tasks_reach_every_family():
    generator = np.random.default_rng(0)
    families = {TASKS[random_task(generator)].family for _ in range(200)}
    assert families == {t.family for t in TASKS.values()}


def test_errors_say_what_to_do():
    with pytest.raises(KeyError, match="expected a task among"):
        render_scene(np.random.default_rng(0), SIZE, task="unicorns")
    with pytest.raises(ValueError, match="at least 8 x 8"):
        render_scene(np.random.default_rng(0), (4, 64))
    with pytest.raises(ValueError, match="no room"):
        compose(np.random.default_rng(0), SIZE, wishes=(Wish("cube", None, 3.0),) * 3)
