"""The job on a Ray cluster of two nodes: the masks of the local run, and nothing lost when a worker dies."""

import json
import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from fake_models import ColourMatcher, blocks, example, scene
from packs import cached_model, small_pack
from PIL import Image
from random_models import random_model

from incontext.image import open_labels
from incontext.labeling import JobStopped, LabelConfig, label
from incontext.labeling.claims import Claims
from incontext.pack.compiling import encode_pack
from incontext.predictor import Predictor

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")

LOCAL = LabelConfig(formats=("labelme",), calibrate=False, threads=2)
ON_RAY = LabelConfig(formats=("labelme",), calibrate=False, threads=2, engine="ray", workers=2)


class Mortal(ColourMatcher):
    """Kills its process in the middle of the work, once, and records who worked."""

    def __init__(self, place: Path) -> None:
        super().__init__()
        self.place = str(place)

    def paint(self, *inputs):
        place = Path(self.place)
        (place / f"worker-{os.getpid()}").touch()
        if len(self.calls) == 20 and not (place / "killed").exists():
            (place / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().paint(*inputs)


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (Path(__file__).parent, Path(__file__).parent.parent))))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    assert len([node for node in ray.nodes() if node["Alive"]]) == 2
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    patch.undo()


@pytest.fixture
def images(tmp_path) -> Path:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for number in range(70):
        name = f"{'sub/' if number % 3 else ''}{number:03}.png"
        Image.fromarray(scene(blocks([1, 2], seed=number))).save(tmp_path / "in" / name)
    (tmp_path / "in" / "bad.png").write_text("no picture")
    return tmp_path / "in"


def run(images, out, model, config, packs=()):
    predictor = Predictor(model, device="cpu")
    shown = [example([1, 2], seed=seed, names={1: "cell", 2: "nucleus"}) for seed in (1, 2)]
    return label(images, [*packs, *shown], out, predictor=predictor, config=config)


def rows(out) -> list[dict]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def files(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("model", [random_model(), cached_model()], ids=["examples", "packs and examples"])
def test_masks_are_those_of_the_local_run_bit_for_bit(cluster, images, tmp_path, model):
    """With packs: one of the examples' classes, encoded; one of a class that gets another id; and recolourings."""
    changes, packs = {}, []
    if not model.config.examples_attend_query:
        packs = [encode_pack(small_pack(model, name="encoded"), model), small_pack(model, ["vessel"], "other")]
        changes = {"recolourings": 2}
    local, on_ray = (
        run(images, tmp_path / name, model, replace(config, **changes), packs)
        for name, config in (("local", LOCAL), ("ray", ON_RAY))
    )
    assert (local.done, on_ray.done, on_ray.made) == (70, 70, 70) and set(on_ray.failures) == {"bad.png"}
    for part in ("masks", "labelme"):
        assert files(tmp_path / "ray" / part) == files(tmp_path / "local" / part)
    kept = ("image", "status", "sha256", "model", "prompt", "settings", "ids", "score", "scores", "error", "mask")
    kept += ("disagreement",)
    local_rows, ray_rows = (
        {row["image"]: {name: row[name] for name in kept} for row in rows(tmp_path / name)} for name in ("local", "ray")
    )
    assert ray_rows == local_rows
    again = run(images, tmp_path / "ray", model, replace(LOCAL, **changes), packs)  # one manifest, whoever goes on
    assert again.made == 0 and again.done == 70


def test_a_killed_worker_loses_nothing_and_doubles_nothing(cluster, images, tmp_path):
    (tmp_path / "place").mkdir()
    summary = run(images, tmp_path / "out", Mortal(tmp_path / "place"), ON_RAY)
    assert (tmp_path / "place" / "killed").exists()
    workers = list((tmp_path / "place").glob("worker-*"))
    assert len(workers) >= 2 and not (tmp_path / "place" / f"worker-{os.getpid()}").exists()
    assert summary.done == 70 and set(summary.failures) == {"bad.png"}
    counts = Counter(row["image"] for row in rows(tmp_path / "out"))
    assert len(counts) == 71 and set(counts.values()) == {1}
    for number in (0, 1, 35, 69):
        name = f"{'sub/' if number % 3 else ''}{number:03}.png"
        assert (open_labels(tmp_path / "out" / "masks" / name) == blocks([1, 2], seed=number)).all()


def test_what_stops_an_actor_stops_the_job_with_its_reason(cluster, images, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "masks").write_text("a file where a folder has to be")
    with pytest.raises(JobStopped, match="expected a folder that can be written to"):
        run(images, tmp_path / "out", ColourMatcher(), ON_RAY)


def test_it_needs_the_folder_for_itself(cluster, images, tmp_path, monkeypatch):
    monkeypatch.setattr(Claims, "take_all", lambda self: False)
    with pytest.raises(JobStopped, match="another process is at work"):
        run(images, tmp_path / "out", ColourMatcher(), ON_RAY)
