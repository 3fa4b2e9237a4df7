"""Packs: what goes in comes out, and what cannot is told."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from small_sets import IGNORED, SIZE, write, write_sets

from incontext.cli.main import main
from incontext.training.pack import Pack, Traits
from incontext.training.pack_writer import folder_items, pack_folders, write_pack
from incontext.training.sources import list_sets


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_sets(tmp_path_factory.mktemp("sets"), count=3)


@pytest.fixture(scope="module")
def pack(root, tmp_path_factory):
    return pack_folders(root, tmp_path_factory.mktemp("packs") / "all.pack", quality=95)


def read(path):
    with Image.open(path) as file:
        return np.asarray(file)


def test_ids_come_out_as_they_went_in(root, pack):
    assert len(pack) == 12
    for index in range(len(pack)):
        name, stem = pack.name(index).split("/")
        record = pack[index]
        for key, folder in (("labels", "masks"), ("instances", "masks_inst")):
            path, found = root / name / folder / f"{stem}.png", getattr(record, key)
            assert (found is not None) == path.exists()
            if found is not None:
                assert found.dtype == np.uint8
                assert np.array_equal(found, read(path))
        image = read(root / name / "images" / f"{stem}.png")
        assert record.image.dtype == np.uint8 and record.image.shape == image.shape
        assert np.abs(record.image.astype(int) - image).mean() < 6  # WebP; colour at half the resolution


def test_sets_classes_and_instances(root, pack):
    assert list(pack.sets) == ["bare", "bsds500_like", "kinds", "red"]
    assert [len(group) for group in pack.sets.values()] == [3] * 4
    assert [name for name, group in pack.sets.items() if all(map(pack.has_instances, group))] == ["kinds"]
    assert not any(pack.has_instances(index) for name in ("bare", "red") for index in pack.sets[name])
    for index in range(len(pack)):
        labels = pack[index].labels
        if labels is None:
            assert pack.classes(index) == {}
            continue
        assert labels[IGNORED].min() == 255
        shares = {int(id): (labels == id).mean() for id in np.unique(labels) if id not in (0, 255)}
        assert pack.classes(index) == pytest.approx(shares, abs=1e-5)


def test_large_images_shrink_and_small_ones_stay(root, tmp_path):
    shrunk = pack_folders(root, tmp_path / "half.pack", side=32)
    for index in range(len(shrunk)):
        record = shrunk[index]
        assert record.image.shape == (24, 32, 3)
        if record.labels is not None:
            assert record.labels.shape == (24, 32)
            name, stem = shrunk.name(index).split("/")
            assert set(np.unique(record.labels)) <= set(np.unique(read(root / name / "masks" / f"{stem}.png")))
    assert pack_folders(root, tmp_path / "whole.pack", side=64)[0].image.shape == (*SIZE, 3)


def test_chosen_sets_only(root, tmp_path):
    pack = pack_folders(root, tmp_path / "some.pack", sets=["red", "bare"])
    assert {name: len(group) for name, group in pack.sets.items()} == {"red": 3, "bare": 3}


def test_packing_writes_over_an_old_pack_and_leaves_nothing_behind(root, pack, tmp_path):
    path = tmp_path / "a.pack"
    pack_folders(root, path, sets=["bare"])
    again = pack_folders(root, path, quality=95)
    assert list(tmp_path.iterdir()) == [path]
    assert [again.name(index) for index in range(12)] == [pack.name(index) for index in range(12)]
    assert all(np.array_equal(again[index].image, pack[index].image) for index in range(12))


def test_an_image_without_its_mask_is_left_out(root, tmp_path):
    write_sets(tmp_path / "sets", count=3)
    (tmp_path / "sets" / "red" / "masks" / "1.png").unlink()
    found = list_sets(tmp_path / "sets")
    assert [item.image.name for item in found["red"]] == ["0.png", "2.png"]
    assert [item.read(SIZE) for item in found["bare"]] == [(None, None)] * 3


def test_frames_of_videos(tmp_path):
    labels = np.eye(16, dtype=np.uint8)
    for video in ("a", "b"):
        for number in range(2):
            write(tmp_path / "clips" / video / "frames" / f"{number:05}.png", np.zeros((16, 16, 3), np.uint8))
            write(tmp_path / "clips" / video / "masks" / f"{number:05}.png", labels)
    pack = pack_folders(tmp_path, tmp_path / "clips.pack")
    assert [pack.name(index) for index in range(4)] == [f"clips/{v}-0000{n}" for v in "ab" for n in "01"]
    assert np.array_equal(pack[3].labels, labels)
    assert [pack.video(index) for index in range(4)] == ["a", "a", "b", "b"]


def test_a_photo_that_lies_on_its_side_fits_its_mask(tmp_path):
    """Masks are drawn on the image as viewers show it: turned as its EXIF entry says."""
    write(tmp_path / "photos" / "masks" / "0.png", np.ones((20, 30), np.uint8))
    (tmp_path / "photos" / "images").mkdir()
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees to show
    stored = np.zeros((30, 20, 3), np.uint8)
    stored[:15] = 255  # on the right when shown
    Image.fromarray(stored).save(tmp_path / "photos" / "images" / "0.jpg", exif=exif, quality=95)
    record = pack_folders(tmp_path, tmp_path / "photos.pack")[0]
    assert record.image.shape == (20, 30, 3)
    assert record.image[:, :12].max() < 20 and record.image[:, 18:].min() > 235


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((20, 30, 3), np.uint8), "one channel of ids.*got mode RGB"),
        (np.full((20, 30), 256, np.uint16), "ids 0..254, got ids up to 256"),
        (np.ones((30, 20), np.uint8), r"the image's size \(30, 20\).*got \(20, 30\)"),
    ],
    ids=["colours", "16 bits", "size"],
)
def test_masks_that_would_lose_their_meaning(mask, message, tmp_path):
    write(tmp_path / "set" / "images" / "x.png", np.zeros((20, 30, 3), np.uint8))
    write(tmp_path / "set" / "masks" / "x.png", mask)
    with pytest.raises(ValueError, match=f"x.png: expected {message}"):
        pack_folders(tmp_path, tmp_path / "out.pack")
    assert not (tmp_path / "out.pack").exists()


def test_all_masks_of_a_set_tell_what_255_means(tmp_path):
    drawn = np.zeros((20, 30), np.uint8)
    drawn[4:12, 5:20] = 255
    for name, masks in {"drawn": (drawn, drawn), "ids": (drawn, np.full((20, 30), 7, np.uint8))}.items():
        for number, mask in enumerate(masks):
            write(tmp_path / name / "images" / f"{number}.png", np.zeros((20, 30, 3), np.uint8))
            write(tmp_path / name / "masks" / f"{number}.png", mask)
            write(tmp_path / name / "masks_inst" / f"{number}.png", drawn)
    pack = pack_folders(tmp_path, tmp_path / "out.pack")
    for name, meaning in (("drawn", 1), ("ids", 255)):
        record = pack[pack.sets[name][0]]
        assert np.array_equal(record.labels, np.where(drawn > 0, meaning, 0))
        assert np.array_equal(record.instances, drawn > 0)  # a set of masks of its own


@pytest.mark.parametrize("options", [[], ["--fit", "1"]], ids=["side", "budget"])
def test_what_cannot_be_read_is_left_out(options, tmp_path, caplog):
    sets, out = write_sets(tmp_path / "sets", count=3), tmp_path / "out.pack"
    write(sets / "red" / "masks" / "0.png", np.ones((9, 9), np.uint8))
    (sets / "red" / "images" / "1.png").write_bytes(b"")
    broken = sets / "kinds" / "masks_inst" / "2.png"
    broken.write_bytes(broken.read_bytes()[:-40])
    assert main(["train", "pack", str(sets), "-o", str(out), "--sets", "red", "kinds", *options]) == 1
    pack = Pack(out)
    assert [pack.name(index) for index in range(len(pack))] == ["red/2", "kinds/0", "kinds/1"]
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 3 and all(map(str.startswith, told, ("failed: red/0: ", "failed: red/1: ", "failed: kinds/2:")))
    image = read(sets / "kinds" / "images" / "1.png")
    assert np.abs(pack[2].image.astype(int) - image).mean() < 12  # no bytes of what was left out lie between


def test_nothing_that_can_be_read(tmp_path, capsys):
    sets, out = write_sets(tmp_path / "sets", count=2), tmp_path / "out.pack"
    for image in (sets / "red" / "images").iterdir():
        image.write_bytes(b"")
    command = ["train", "pack", str(sets), "--sets", "red", "-o", str(out)]
    for options, message in (
        ([], "none of 2 images can be read; the last: "),
        (["--fit", "1"], "2 images of a sample"),
    ):
        assert main([*command, *options]) == 2
        assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_where_the_pack_is_to_be(root, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["train", "pack", str(root), "-o", str(tmp_path)])
    assert "got the folder" in capsys.readouterr().err


def test_the_digest_tells_packs_apart(root, pack, tmp_path):
    assert pack_folders(root, tmp_path / "same.pack", quality=95).digest == pack.digest
    others = [
        pack_folders(root, tmp_path / "quality.pack", quality=90),
        pack_folders(root, tmp_path / "sets.pack", quality=95, sets=["red"]),
        write_pack(folder_items(root), tmp_path / "traits.pack", quality=95, traits={"red": Traits(handed=True)}),
    ]
    assert len({pack.digest, *(other.digest for other in others)}) == 4


def test_a_mask_of_one_bit_is_class_1(tmp_path):
    write(tmp_path / "set" / "images" / "x.png", np.zeros((20, 30, 3), np.uint8))
    write(tmp_path / "set" / "masks" / "x.png", np.ones((20, 30), bool))
    assert pack_folders(tmp_path, tmp_path / "out.pack").classes(0) == {1: 1.0}


def test_foreign_files(tmp_path):
    foreign = tmp_path / "foreign.pack"
    foreign.write_bytes(b"no pack at all")
    with pytest.raises(ValueError, match=r"foreign.pack: expected a pack written by `incontext train pack`"):
        Pack(foreign)
    save_file({"weight": np.zeros(3, np.float32)}, foreign, {"format": "pt"})
    with pytest.raises(ValueError, match=r"expected a pack.*format is 'pt'"):
        Pack(foreign)
    with pytest.raises(FileNotFoundError):
        Pack(tmp_path / "missing.pack")


def test_folders_that_hold_no_sets(root, tmp_path):
    with pytest.raises(ValueError, match=r"unknown sets \['blue'\].*holds \['bare', 'bsds500_like', 'kinds', 'red'\]"):
        pack_folders(root, tmp_path / "out.pack", sets=["red", "blue"])
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "missing", root / "red" / "images" / "0.png"):
        with pytest.raises(ValueError, match="expected (sets as SET/images|a folder of labelled sets)"):
            pack_folders(folder, tmp_path / "out.pack")


def test_command(root, tmp_path, capsys):
    out = tmp_path / "red.pack"
    assert main(["train", "pack", str(root), "-o", str(out), "--side", "32", "--sets", "red"]) == 0
    assert Pack(out)[0].image.shape == (24, 32, 3)
    assert "3 images" in capsys.readouterr().out
    assert main(["train", "pack", str(root), "-o", str(out), "--sets", "blue"]) == 2
    assert "unknown sets ['blue']" in capsys.readouterr().err
