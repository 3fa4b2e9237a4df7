"""Label jobs that are shown prompt packs: alone, several, beside examples, and with corrections."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_models import ColourMatcher, blocks, example, scene
from packs import cached_model, small_pack
from PIL import Image
from predictions import predictor
from random_models import TINY_CACHED, random_model

from incontext.image import open_labels
from incontext.labeling import LabelConfig, label
from incontext.labeling.fingerprints import pack_fingerprint
from incontext.pack import PackError, PromptPack
from incontext.pack.compiling import compile_pack, encode_pack

QUICK = LabelConfig(calibrate=False)
NAMES = {1: "cell", 2: "nucleus", 3: "vessel"}
NOBODY = 99


def seen_pack(ids=(1, 2), name="seen", *, seed=1, **options) -> PromptPack:
    """Of scenes: what looks like id k of `NAMES` is called so, with the ids 1, 2, ... in the order given."""
    looks = [NOBODY] * max(ids)
    for own, id in enumerate(ids, start=1):
        looks[id - 1] = own
    own = range(1, len(ids) + 1)
    names = {k: NAMES[id] for k, id in zip(own, ids, strict=True)}
    shown = [example(own, seed=seed + k, looks=looks, names=names) for k in range(2)]
    return compile_pack(ColourMatcher(), shown, name, **options)


def write_images(folder: Path, count: int, ids=(1, 2)) -> dict[str, np.ndarray]:
    """Scenes that `ColourMatcher` segments perfectly; returns their truths, in the ids of `NAMES`."""
    folder.mkdir()
    truths = {f"{number}.png": blocks(ids, seed=20 + number) for number in range(count)}
    for name, truth in truths.items():
        Image.fromarray(scene(truth)).save(folder / name)
    return truths


def run(tmp_path, shown, config=QUICK, model=None, **options):
    return label(tmp_path / "in", shown, tmp_path / "out", predictor=predictor(model, **options), config=config)


def record(tmp_path) -> dict:
    return json.loads((tmp_path / "out" / "job.json").read_text())


def rows(tmp_path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]


def check_masks(tmp_path, truths, ids):
    """`ids`: those of `NAMES` -> those of the job."""
    table = np.array([ids.get(id, 0) for id in range(4)])
    for name, truth in truths.items():
        np.testing.assert_array_equal(open_labels(tmp_path / "out" / "masks" / name), table[truth])


def test_a_pack_alone_labels_with_its_names_and_its_confidence(tmp_path, monkeypatch):
    monkeypatch.setattr("incontext.labeling.job.fit_temperature", lambda *_, **__: pytest.fail("there is no example"))
    truths = write_images(tmp_path / "in", 3)
    pack = dataclasses.replace(seen_pack(), temperature=77.0)
    summary = run(tmp_path, pack, LabelConfig(("coco",)))
    assert (summary.done, summary.made, summary.failures) == (3, 3, {})
    check_masks(tmp_path, truths, {1: 1, 2: 2})
    found = record(tmp_path)
    assert (found["packs"], found["examples"], found["temperature"]) == (["seen"], 0, pytest.approx(77))
    assert found["names"] == {"1": "cell", "2": "nucleus"}
    coco = json.loads((tmp_path / "out" / "coco" / "annotations.json").read_text())
    assert [each["name"] for each in coco["categories"]] == ["cell", "nucleus"]
    model = ColourMatcher()
    assert run(tmp_path, [pack], LabelConfig(("coco",)), model).made == 0 and not model.calls
    run(tmp_path, pack, LabelConfig(("coco",)), temperature=99.0)
    assert record(tmp_path)["temperature"] == 99.0  # the user said so


def test_packs_join_by_name(tmp_path):
    truths = write_images(tmp_path / "in", 3, (1, 2, 3))
    assert run(tmp_path, [seen_pack((1, 2)), seen_pack((2, 3), "more")]).done == 3
    check_masks(tmp_path, truths, {1: 1, 2: 2, 3: 3})
    assert record(tmp_path)["names"] == {"1": "cell", "2": "nucleus", "3": "vessel"}


def test_packs_and_examples_join_whatever_the_order(tmp_path):
    truths = write_images(tmp_path / "in", 3, (1, 2, 3))
    vessel = example(
        [1], looks=[NOBODY, NOBODY, 1], names={1: "vessel"}
    )  # has the id 1, so the pack's classes make way
    assert run(tmp_path, [seen_pack(), vessel]).made == 3
    check_masks(tmp_path, truths, {1: 2, 2: 3, 3: 1})
    assert record(tmp_path)["names"] == {"1": "vessel", "2": "cell", "3": "nucleus"}
    assert run(tmp_path, [vessel, seen_pack()]).made == 0


def test_corrections_join_the_packs(tmp_path):
    truths = write_images(tmp_path / "in", 4, (1, 2, 3))
    packs = [seen_pack((1, 2)), seen_pack((3,), "other")]
    ids = {1: 1, 2: 2, 3: 3}  # "other" calls it 1, which is taken
    run(tmp_path, packs)
    check_masks(tmp_path, truths, ids)
    corrected = np.where(truths["0.png"] == 3, 3, 0)
    (tmp_path / "out" / "corrections").mkdir()
    Image.fromarray(corrected.astype(np.uint8)).save(tmp_path / "out" / "corrections" / "0.png")
    model = ColourMatcher()
    assert run(tmp_path, packs, LabelConfig(), model).made == 4
    np.testing.assert_array_equal(open_labels(tmp_path / "out" / "masks" / "0.png"), corrected)
    found = record(tmp_path)
    assert found["names"] == {"1": "cell", "2": "nucleus", "3": "vessel"} and found["examples"] == 1
    assert max(call["images"].shape[1] for call in model.calls) == 3  # two of the pack, and the correction
    assert run(tmp_path, packs, LabelConfig()).made == 0


@pytest.mark.parametrize(
    ("changes", "redone"),
    [
        ({"images": 1}, True),
        ({"masks": 1}, True),
        ({"temperature": 50.0}, True),
        ({"kind": "instance"}, True),
        ({"ensemble": "spatial"}, True),
        ({"tile": 16}, True),
        ({"name": "renamed", "evaluation": {"iou": 0.9}, "made": {"by": "me"}}, False),
    ],
)
def test_a_changed_pack_does_the_work_again(tmp_path, changes, redone):
    write_images(tmp_path / "in", 2)
    pack = seen_pack()
    run(tmp_path, pack)
    for name in {"images", "masks"} & changes.keys():
        tensor = getattr(pack, name).clone()
        tensor[0, ..., :3] = 0
        changes = {name: tensor}
    assert run(tmp_path, dataclasses.replace(pack, **changes)).made == (2 if redone else 0)


def test_the_fingerprint_of_a_pack_is_that_of_its_file(tmp_path):
    model = cached_model()
    pack = encode_pack(small_pack(model), model)
    pack.save(tmp_path / "p.safetensors")
    assert pack_fingerprint(PromptPack.load(tmp_path / "p.safetensors")) == pack_fingerprint(pack)
    border = pack.caches[0].border + 1
    other = dataclasses.replace(pack, caches=(dataclasses.replace(pack.caches[0], border=border), *pack.caches[1:]))
    prints = {pack_fingerprint(each) for each in (pack, other, small_pack(model), pack.renumber({1: 3}))}
    assert len(prints) == 4


def test_kind_ensemble_and_tile_are_the_packs_unless_the_user_says(tmp_path):
    write_images(tmp_path / "in", 1)
    pack = seen_pack(kind="semantic", ensemble="spatial")
    model = ColourMatcher()
    run(tmp_path, pack, model=model)
    assert {(call["kind"], call["images"].shape[1]) for call in model.calls} == {("semantic", 1)}
    settings = record(tmp_path)["settings"]
    assert (settings["kind"], settings["ensemble"], settings["tile"]) == ("semantic", "spatial", None)

    model = ColourMatcher()
    said = LabelConfig(calibrate=False, kind="instance", ensemble="feature", tile=16)
    run(tmp_path, pack, said, model)
    assert {(call["kind"], call["images"].shape[1]) for call in model.calls} == {("instance", 2)}
    assert sum(len(call["query"]) for call in model.calls) > 1  # tiles
    settings = record(tmp_path)["settings"]
    assert (settings["kind"], settings["ensemble"], settings["tile"]) == ("instance", "feature", 16)


def test_what_the_packs_say_and_saying_it_is_one_job(tmp_path):
    write_images(tmp_path / "in", 2)
    pack = seen_pack(kind="semantic", ensemble="spatial")
    run(tmp_path, pack)
    assert run(tmp_path, pack, dataclasses.replace(QUICK, kind="semantic", ensemble="spatial")).made == 0
    differing = [pack, seen_pack((2, 3), "more", kind="instance")]
    with pytest.raises(PackError, match="ensemble: expected packs that agree"):
        run(tmp_path, differing)
    said = dataclasses.replace(QUICK, kind="semantic", ensemble="feature")
    assert run(tmp_path, differing, said).made == 2


def test_a_pack_of_another_model_is_refused_before_any_image_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr("incontext.labeling.job.find_images", lambda *_, **__: pytest.fail("looked at images"))
    pack = small_pack(random_model(TINY_CACHED, seed=1))
    with pytest.raises(PackError, match="was made for another model"):
        run(tmp_path, pack, model=cached_model())
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="at least one example or prompt pack, got none"):
        run(tmp_path, [])


def test_select_chooses_among_examples_beside_the_packs(tmp_path, monkeypatch):
    write_images(tmp_path / "in", 2)
    model, shown = random_model(), []
    forward = type(model).forward

    def note(self, *args, **options):  # on the class: the predictor may make a copy of the model ready
        shown.append(args)
        return forward(self, *args, **options)

    monkeypatch.setattr(type(model), "forward", note)
    pool = [example([1, 2], seed=seed, names={1: "cell", 2: "nucleus"}) for seed in range(5)]
    pack = compile_pack(model, pool[:3], "three")
    config = LabelConfig(calibrate=False, select=2, recolourings=2)
    assert run(tmp_path, [pack, *pool], config, model).done == 2
    counts = [args[1].shape[1] for args in shown if len(args) == 3]  # the rest are embeddings
    assert counts == [3 + 2] * (2 * 3)  # each image once and in two other sets of colours
    with pytest.raises(ValueError, match="select: expected examples to choose from, got packs alone"):
        run(tmp_path, pack, config, model)


def test_examples_beside_packs_fit_the_confidence(tmp_path, monkeypatch):
    write_images(tmp_path / "in", 1)
    seen = {}

    def fit(predictor, examples, packs, **manner):
        seen.update(manner, examples=len(examples), ids=[pack.ids for pack in packs])
        return 123.0

    monkeypatch.setattr("incontext.labeling.job.fit_temperature", fit)
    pack = seen_pack(kind="semantic", tile=16)
    run(tmp_path, [pack, example([1], looks=[NOBODY, 1], names={1: "nucleus"})], LabelConfig())
    assert seen == {"examples": 1, "ids": [(2, 1)], "kind": "semantic", "ensemble": "feature", "tile": 16}
    assert record(tmp_path)["temperature"] == 123.0


def test_an_encoded_pack_labels_as_it_does_without(tmp_path):
    model = cached_model()
    write_images(tmp_path / "in", 2)
    plain = small_pack(model)
    for name, pack in (("plain", plain), ("encoded", encode_pack(plain, model))):
        label(tmp_path / "in", pack, tmp_path / name, predictor=predictor(model), config=QUICK)
    for image in ("0.png", "1.png"):
        masks = [open_labels(tmp_path / name / "masks" / image) for name in ("plain", "encoded")]
        np.testing.assert_array_equal(*masks)
    assert torch.equal(plain.images, encode_pack(plain, model).images)


def test_recolourings_recolour_packs(tmp_path):
    write_images(tmp_path / "in", 2)
    model = ColourMatcher()
    run(tmp_path, seen_pack(), dataclasses.replace(QUICK, recolourings=3), model)
    assert [row["disagreement"] for row in rows(tmp_path)] == [0.0, 0.0]  # colours do not matter to it
    assert len({call["targets"].numpy().tobytes() for call in model.calls}) == 4
