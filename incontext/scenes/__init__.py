"""Scenes that the project renders itself: pictures with exactly known truth.

    generator = np.random.default_rng(0)
    scene = render_scene(generator, (192, 192), task="biggest red sphere")
    labels = task_labels(scene, "biggest red sphere")

Solids on a ground plane, in the manner of the teaser figure of SegGPT (arXiv 2304.03284): the biggest
red sphere, all spheres, shadows, top faces, contours, an id for each kind. For the demo, tests and
training; needs numpy and Pillow only.
"""

from incontext.scenes.compose import COLOURS, Wish, compose
from incontext.scenes.render import GROUND, WALL, Scene
from incontext.scenes.solids import KINDS, SIDE, TOP
from incontext.scenes.tasks import TASKS, Task, random_task, render_scene, task_labels

__all__ = [
    "COLOURS",
    "GROUND",
    "KINDS",
    "SIDE",
    "TASKS",
    "TOP",
    "WALL",
    "Scene",
    "Task",
    "Wish",
    "compose",
    "random_task",
    "render_scene",
    "task_labels",
]
