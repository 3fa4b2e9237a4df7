"""What can be asked of a scene, with the exact answer: the tasks of SegGPT's teaser figure and their kin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from incontext.scenes.compose import COLOURS, Wish, compose
from incontext.scenes.render import Scene
from incontext.scenes.solids import KINDS, TOP

_TRIES = 50


@dataclass(frozen=True)
class Task:
    """Something to segment in a scene.

    Attributes:
        name: its key in TASKS.
        label: Scene -> int (H, W) labels.
        names: id -> name; empty where ids are not the same thing from scene to scene.
        family: tasks that differ only in a colour or a kind are one family.
        wishes: generator -> solids that a scene for this task holds, distractors among them.
        least: share of the picture that the answer covers at least in a scene made for the task.
        rivals: (kind, colour, largest radius) that other solids of such a scene must not exceed.
    """

    name: str
    label: Callable[[Scene], np.ndarray]
    names: dict[int, str] = field(default_factory=dict)
    family: str = ""
    wishes: Callable[[np.random.Generator], tuple[Wish, ...]] = lambda generator: ()
    rivals: tuple[tuple[str, str, float], ...] = ()
    least: float = 0.004


def render_scene(
    generator: np.random.Generator, size: tuple[int, int] = (192, 192), *, task: str | None = None
) -> Scene:
    """Draw a random scene.

    Args:
        generator: the only source of randomness: equal states give equal scenes.
        size: (H, W).
        task: a key of TASKS; the scene then has something to segment for it, and distractors.

    Returns:
        The scene; `task_labels` gives the truth of any task for it.
    """
    if task is None:
        return compose(generator, size)
    wanted = _find(task)
    for _ in range(_TRIES):
        scene = compose(generator, size, wanted.wishes(generator), forbidden=wanted.rivals)
        if np.count_nonzero(wanted.label(scene)) >= wanted.least * scene.objects.size:
            return scene
    raise RuntimeError(f"no scene for {task!r} in {_TRIES} tries at size {size}; a larger size helps")


def task_labels(scene: Scene, task: str) -> np.ndarray:
    """The exact answer to a task.

    Args:
        scene: from `render_scene`.
        task: a key of TASKS.

    Returns:
        int32 (H, W): 0 background, ids from 1; `TASKS[task].names` names them.
    """
    return _find(task).label(scene).astype(np.int32)


def random_task(generator: np.random.Generator) -> str:
    """A task name, every family equally often."""
    families = list(dict.fromkeys(t.family for t in TASKS.values()))
    family = families[int(generator.integers(len(families)))]
    names = [t.name for t in TASKS.values() if t.family == family]
    return names[int(generator.integers(len(names)))]


def _find(task: str) -> Task:
    if task not in TASKS:
        raise KeyError(f"expected a task among {', '.join(TASKS)}; got {task!r}")
    return TASKS[task]


def _of(scene: Scene, ids) -> np.ndarray:
    """(H, W) labels from one id for each solid."""
    return np.array([0, *ids], np.int32)[scene.objects]


def _biggest(scene: Scene, kind: str, colour: str | None) -> np.ndarray:
    """Biggest by true size, not by pixels: a near solid does not beat a bigger one farther off."""
    sizes = [s.radius if s.kind == kind and colour in (None, s.colour) else 0.0 for s in scene.solids]
    best = int(np.argmax(sizes)) if sizes and max(sizes) > 0 else -1
    return _of(scene, [int(i == best) for i in range(len(sizes))])


def _contours(scene: Scene) -> np.ndarray:
    """A band along the outline of every object, about 1/64 of the picture wide."""
    wide = max(1, round(min(scene.size) / 128))
    padded = np.pad(scene.objects, wide, mode="edge")
    views = np.lib.stride_tricks.sliding_window_view(padded, (2 * wide + 1, 2 * wide + 1))
    return (views.min(axis=(2, 3)) != views.max(axis=(2, 3))).astype(np.int32)


def _tops(scene: Scene) -> np.ndarray:
    return (scene.faces == TOP) & (_of(scene, [s.kind == "cube" for s in scene.solids]) > 0)


def _kind_task(kind: str) -> Task:
    def wishes(generator: np.random.Generator) -> tuple[Wish, ...]:
        other = [k for k in KINDS if k != kind]
        return (Wish(kind), Wish(kind), Wish(other[int(generator.integers(len(other)))]))

    return Task(
        name=f"{kind}s",
        label=lambda scene: _of(scene, [s.kind == kind for s in scene.solids]),
        names={1: kind},
        family="one kind",
        wishes=wishes,
    )


def _colour_task(colour: str) -> Task:
    def wishes(generator: np.random.Generator) -> tuple[Wish, ...]:
        other = [c for c in COLOURS if c != colour]
        return (
            Wish(colour=colour),
            Wish(colour=colour),
            Wish(colour=other[int(generator.integers(len(other)))]),
        )

    return Task(
        name=f"{colour} things",
        label=lambda scene: _of(scene, [s.colour == colour for s in scene.solids]),
        names={1: colour},
        family="one colour",
        wishes=wishes,
    )


def _biggest_task(kind: str, colour: str) -> Task:
    def wishes(generator: np.random.Generator) -> tuple[Wish, ...]:
        other = str(generator.choice([c for c in COLOURS if c != colour]))
        shape = str(generator.choice([k for k in KINDS if k != kind]))
        big = float(generator.uniform(0.9, 1.1))
        small = float(generator.uniform(0.45, 0.6))
        # another colour of the kind is just as big: neither kind nor size nor colour alone gives it away
        return (
            Wish(kind, colour, big),
            Wish(kind, colour, small),
            Wish(kind, other, big),
            Wish(shape, colour),
        )

    return Task(
        name=f"biggest {colour} {kind}",
        label=lambda scene: _biggest(scene, kind, colour),
        names={1: f"biggest {colour} {kind}"},
        family="biggest",
        wishes=wishes,
        rivals=((kind, colour, 0.65),),
    )


def _one_of_each(generator: np.random.Generator) -> tuple[Wish, ...]:
    return tuple(Wish(kind, None, float(generator.uniform(0.5, 0.85))) for kind in KINDS)


def _table() -> dict[str, Task]:
    colours = {name: i for i, name in enumerate(COLOURS, start=1)}
    kinds = {name: i for i, name in enumerate(KINDS, start=1)}
    tasks = [
        Task(
            "kinds",
            lambda scene: _of(scene, [kinds[s.kind] for s in scene.solids]),
            {i: name for name, i in kinds.items()},
            wishes=_one_of_each,
        ),
        Task(
            "colours",
            lambda scene: _of(scene, [colours[s.colour] for s in scene.solids]),
            {i: name for name, i in colours.items()},
        ),
        Task("shadows", lambda scene: scene.shadow, {1: "shadow"}, least=0.025),
        Task(
            "top faces",
            _tops,
            {1: "top face"},
            wishes=lambda generator: (Wish("cube"), Wish("cube")),
            least=0.012,
        ),
        Task("contours", _contours, {1: "contour"}),
        Task("objects", lambda scene: scene.objects),
        Task("things", lambda scene: scene.objects > 0, {1: "thing"}),
        Task(
            "surroundings",
            lambda scene: scene.surface > 0,
            {1: "surroundings"},
        ),
        Task(
            "patterned things",
            lambda scene: _of(scene, [s.paint.pattern != "plain" for s in scene.solids]),
            {1: "patterned"},
        ),
        *(_kind_task(kind) for kind in KINDS),
        *(_colour_task(colour) for colour in COLOURS),
        *(_biggest_task(kind, colour) for kind in ("sphere", "cube", "cylinder") for colour in COLOURS),
    ]
    return {t.name: t if t.family else replace(t, family=t.name) for t in tasks}


TASKS: dict[str, Task] = _table()
