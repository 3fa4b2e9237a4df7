"""Packs on disk: the same to the last bit, and damaged or hostile files refused."""

from __future__ import annotations

import dataclasses
import json
import os

import numpy as np
import pytest
import torch
from packs import cached_model, small_pack
from predictions import predictor
from safetensors import safe_open
from safetensors.torch import save_file
from test_pack import QUERY, equal

from incontext.pack import PackError, PromptPack
from incontext.pack.compiling import encode_pack
from incontext.pack.library import locate_pack, open_pack, pack_files


@pytest.fixture(scope="module")
def model():
    return cached_model()


@pytest.fixture
def saved(model, tmp_path):
    path = tmp_path / "small.safetensors"
    small_pack(model).save(path)
    return path


def contents(path):
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["incontext.pack"])


def rewrite(path, tensors, fields):
    save_file(tensors, path, {"incontext.pack": fields if isinstance(fields, str) else json.dumps(fields)})


@pytest.mark.parametrize("form", ["compiled", "learned", "encoded"])
def test_saved_and_loaded_is_the_same_to_the_last_bit(model, tmp_path, form):
    pack = small_pack(model)
    if form == "learned":
        shares = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).softmax(1).half()
        pack = dataclasses.replace(pack, images=pack.pixels().half(), masks=shares, temperature=1234.5)
    if form == "encoded":
        pack = encode_pack(pack, model)
    pack = dataclasses.replace(pack, made={"steps": 3, "mirror": True}, evaluation={"IoU": 51.25, "set": "cells | <b>"})
    before = predictor(model).predict(QUERY, pack)
    pack.save(tmp_path / "p.safetensors")
    loaded = PromptPack.load(tmp_path / "p.safetensors")
    equal(before, predictor(model).predict(QUERY, loaded))
    for field in dataclasses.fields(pack):
        a, b = getattr(pack, field.name), getattr(loaded, field.name)
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b) and a.dtype == b.dtype
        elif field.name == "palettes":
            assert all(x.ids == y.ids and np.array_equal(x.colours, y.colours) for x, y in zip(a, b, strict=True))
        elif field.name != "caches":
            assert a == b, field.name
    card = (tmp_path / "p.md").read_text()
    assert "| set | cells \\| \\<b\\> |" in card and "--pack p.safetensors" in card


def test_a_file_from_before_strength_and_favour_has_the_usual_ones(saved):
    tensors, fields = contents(saved)
    del fields["strength"], fields["favour"]
    rewrite(saved, tensors, fields)
    loaded = PromptPack.load(saved)
    assert (loaded.strength, loaded.favour) == (1.0, 1.0)


def test_every_cut_is_refused(saved):
    whole = saved.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:length])
        with pytest.raises(PackError):
            PromptPack.load(saved)


def test_noise_and_other_files_are_refused(saved, tmp_path):
    generator = np.random.default_rng(0)
    whole = bytearray(saved.read_bytes())
    for _ in range(60):  # a byte of the header, anywhere
        broken = bytearray(whole)
        broken[int(generator.integers(0, 1200))] ^= int(generator.integers(1, 256))
        saved.write_bytes(broken)
        try:
            PromptPack.load(saved)  # text may have changed to other text
        except PackError:
            pass
    for content in (b"", b"PK\x03\x04", b"\x80\x04N.", os.urandom(4096), b"version https://git-lfs.github.com/spec/v1"):
        saved.write_bytes(content)
        with pytest.raises(PackError):
            PromptPack.load(saved)
    save_file({"images": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(PackError, match="no prompt pack"):
        PromptPack.load(tmp_path / "other.safetensors")
    with pytest.raises(PackError, match="no prompt pack at"):
        PromptPack.load(tmp_path / "gone.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"format": True},
        {"surprise": 1},
        {"name": "../../etc/passwd"},
        {"name": ["a"]},
        {"passes": []},
        {"passes": [{"ids": [1, 2], "colours": [[1, 2, 3]]}]},
        {"passes": [{"ids": [1, 2], "colours": [[1, 2, 3], [1, 2, 300]]}]},
        {"passes": [{"ids": [1, 2], "colours": [[1, 2, 3], [1, 2, 3]]}]},
        {"passes": [{"ids": [1, 1], "colours": [[1, 2, 3], [9, 9, 9]]}]},
        {"passes": [{"ids": [1, -2], "colours": [[1, 2, 3], [9, 9, 9]]}]},
        {"passes": [{"ids": [1, 10**30], "colours": [[1, 2, 3], [9, 9, 9]]}]},
        {"passes": [{"ids": 5, "colours": 5}]},
        {"passes": ["x"]},
        {"names": {"1": "a"}},
        {"names": {"x": "a", "2": "b"}},
        {"names": {"1": "a", "2": ["b"]}},
        {"fingerprint": "f" * 63},
        {"temperature": "hot"},
        {"temperature": -1},
        {"tile": 1.5},
        {"made": {"a": {"b": 1}}},
        {"made": {"a\nb": 1}},
        {"evaluation": []},
        {"cache_grid": [4, 4]},
        {"cache_grid": [0, "4"]},
    ],
    ids=str,
)
def test_a_description_that_lies_is_refused(saved, change):
    tensors, fields = contents(saved)
    rewrite(saved, tensors, {**fields, **change})
    with pytest.raises(PackError, match=r"small\.safetensors"):
        PromptPack.load(saved)


def test_descriptions_that_are_no_json_are_refused(saved):
    tensors, fields = contents(saved)
    for text in ("", "[1]", "[" * 100_000, '{"temperature": NaN}', json.dumps({**fields, "temperature": 1e400})):
        rewrite(saved, tensors, text)
        with pytest.raises(PackError):
            PromptPack.load(saved)


def test_tensors_that_do_not_belong_are_refused(saved):
    tensors, fields = contents(saved)
    for wrong in (
        {**tensors, "extra": torch.zeros(1)},
        {"images": tensors["images"]},
        {**tensors, "images": tensors["images"].float()},
        {**tensors, "images": torch.full((2, 3, 32, 32), float("inf")).half()},
        {**tensors, "masks": tensors["masks"] + 7},
        {**tensors, "masks": tensors["masks"][:1]},
    ):
        rewrite(saved, {key: value.contiguous() for key, value in wrong.items()}, fields)
        with pytest.raises(PackError):
            PromptPack.load(saved)


def test_an_encoded_prompt_that_does_not_fit_is_refused(model, tmp_path):
    path = tmp_path / "e.safetensors"
    encode_pack(small_pack(model), model).save(path)
    tensors, fields = contents(path)
    broken = {**tensors, "cache.0.1.key": torch.full_like(tensors["cache.0.1.key"], float("nan"))}
    short = {**tensors, "cache.0.1.key": tensors["cache.0.1.key"][..., :3, :].contiguous()}
    gap = {key: value for key, value in tensors.items() if key != "cache.0.1.value"}
    for wrong in (broken, short, gap):
        rewrite(path, wrong, fields)
        with pytest.raises(PackError):
            PromptPack.load(path)


def test_packs_have_names(saved, monkeypatch, tmp_path):
    monkeypatch.setattr("incontext.pack.library.SHIPPED", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert locate_pack("small") == saved and open_pack("small").name == "small"
    assert locate_pack(saved) == saved
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()  # no folder is a pack
    assert locate_pack("small") == saved
    (tmp_path / ".small.0123456789ab.safetensors").write_bytes(b"cut")  # a killed run's
    assert list(pack_files((tmp_path,))) == [saved]
    with pytest.raises(PackError, match=r"'large'.*small"):
        open_pack("large")


def test_another_suffix_is_refused(model, tmp_path):
    with pytest.raises(PackError, match=r"ends in \.safetensors"):
        small_pack(model).save(tmp_path / "pack.bin")
