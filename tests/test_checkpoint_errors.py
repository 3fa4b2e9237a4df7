"""Bad checkpoints: whatever is wrong with a file, one clear error, and nothing in it runs."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile

import pytest
import torch
from random_models import TINY, random_model
from safetensors.torch import load_file, save_file

from incontext.model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from incontext.model.config import PRESETS


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture
def saved(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save_checkpoint(model, path)
    return path


def test_missing_files(tmp_path):
    with pytest.raises(CheckpointError, match=r"no weights at .*none\.safetensors: expected"):
        load_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 20_000, -1])
def test_truncated_safetensors(saved, kept):
    content = saved.read_bytes()
    saved.write_bytes(content[:kept])
    with pytest.raises(CheckpointError, match="fetch|Fetch"):
        load_checkpoint(saved)


@pytest.mark.parametrize("kept", [4, 100, 20_000, -1])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_pth(model, tmp_path, zipped, kept):
    path = tmp_path / "m.pth"
    torch.save({"model": model.state_dict()}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="fetch|Fetch"):
        load_checkpoint(path, config=TINY)


class Bomb:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pth_does_not_run(model, tmp_path, zipped):
    bomb = Bomb(f"touch {tmp_path}/ran")
    path = tmp_path / "m.pth"
    torch.save({"model": model.state_dict(), "x": bomb}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="holds Python objects beside tensors"):
        load_checkpoint(path, config=TINY)
    path.write_bytes(pickle.dumps(bomb))
    with pytest.raises(CheckpointError, match="Python objects|damaged"):
        load_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_a_compressed_pth_is_not_unpacked(model, tmp_path):
    torch.save({"model": model.state_dict()}, tmp_path / "m.pth")
    with (
        zipfile.ZipFile(tmp_path / "m.pth") as plain,
        zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    with pytest.raises(CheckpointError, match="compressed archive"):
        load_checkpoint(tmp_path / "packed.pth", config=TINY)


def test_a_tensor_that_claims_more_than_it_stores(model, tmp_path):
    state = model.state_dict()
    state["mask_token"] = torch.zeros(1).expand(1, 1, 1, 10**12)
    torch.save({"model": state}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="mask_token stores less"):
        load_checkpoint(tmp_path / "m.pth")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([1, 2], "holds a list"),
        ({}, "holds a dict"),
        ({"model": {}}, "holds a dict"),
        ({"model": {"mask_token": 3}}, "other things than tensors"),
        ({"epoch": 3, "weights": {}}, "other things than tensors"),
    ],
)
def test_pth_with_other_content(tmp_path, content, expected):
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=expected):
        load_checkpoint(tmp_path / "m.pth")


def header(length: int, text: bytes) -> bytes:
    return struct.pack("<Q", length) + text


@pytest.mark.parametrize(
    "content",
    [
        header(2**63, b'{"a"' + b" " * 100),
        header(10**12, b'{"a":1}'),
        header(4, b"{{{{"),
        header(70, b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}    ' + bytes(4)),
        header(70, b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}'.ljust(70) + bytes(4)),
        header(80, b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[99999990,99999994]}}'.ljust(80) + bytes(4)),
        header(200_000, b'{"a":' * 40_000),
        b"<!DOCTYPE html><html><title>404</title>",
        b"",
    ],
    ids=["2^63", "10^12", "no json", "shape", "dtype", "offsets", "nested", "html", "empty"],
)
def test_hostile_or_foreign_bytes(tmp_path, content):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="fetch|Fetch"):
        load_checkpoint(path)


def test_git_lfs_pointer(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        load_checkpoint(path)


def rewritten(saved, state_change=lambda state: None, **metadata):
    """The saved file with other content."""
    state = {key: tensor.clone() for key, tensor in load_file(saved).items()}
    state_change(state)
    texts = {"incontext.format": "1", "incontext.config": json.dumps(TINY.to_dict())} | metadata
    save_file(state, saved, metadata=texts)
    return saved


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("3", "expected an object"),
        (json.dumps(TINY.to_dict() | {"colour": 1}), "unknown config fields"),
        (json.dumps(TINY.to_dict() | {"mlp_ratio": float("nan")}), "mlp_ratio"),
        (json.dumps(TINY.to_dict() | {"mlp_ratio": -1}), "no model can have"),
        (json.dumps(TINY.to_dict() | {"width": 2**62, "heads": 2}), "no model can have"),
        (json.dumps(TINY.to_dict() | {"depth": 10**9}), "too few for the 1000000000 blocks"),
    ],
    ids=["broken", "nested", "number", "unknown", "nan", "negative", "huge", "deep"],
)
def test_hostile_config(saved, config, expected):
    with pytest.raises(CheckpointError, match=expected):
        load_checkpoint(rewritten(saved, **{"incontext.config": config}))


def test_a_file_of_a_later_format(saved):
    with pytest.raises(CheckpointError, match="format version 2, this release reads 1; upgrade"):
        load_checkpoint(rewritten(saved, **{"incontext.format": "2"}))


def test_differences_are_listed(saved):
    def change(state):
        del state["norm.bias"]
        state["head.weight"] = torch.zeros(2, 3)
        state["mask_token"] = torch.zeros(1, 1, 1, 5)

    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(rewritten(saved, change))
    text = str(caught.value)
    for line in (
        "  - norm.bias (32,)",
        "  - mask_token (1, 1, 1, 32)",
        "  + mask_token (1, 1, 1, 5)",
        "  + head.weight (2, 3)",
        "2 missing -, 2 unexpected +",
        "config=SegGPTConfig(...)",
    ):
        assert line in text


def test_long_differences_are_cut(saved):
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(saved, config=PRESETS["small"])
    lines = str(caught.value).splitlines()
    assert len(lines) < 25
    assert sum("more" in line for line in lines) == 2


def test_the_file_of_another_model(tmp_path):
    save_file({"conv1.weight": torch.zeros(8, 3, 7, 7), "fc.bias": torch.zeros(10)}, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"not a SegGPT checkpoint[\s\S]*\+ conv1.weight \(8, 3, 7, 7\)"):
        load_checkpoint(tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="file of another model|too few"):
        load_checkpoint(tmp_path / "m.safetensors", config=TINY)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(saved, tmp_path, value):
    def change(state):
        state["norm.bias"][3] = value

    with pytest.raises(CheckpointError, match=r"NaN or infinity, first \['norm.bias'\]"):
        load_checkpoint(rewritten(saved, change))
    model = random_model()
    with torch.no_grad():
        model.norm.bias[3] = value
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        save_checkpoint(model, tmp_path / "new.safetensors")
    with torch.no_grad():
        model.norm.bias[3] = 1e30
    with pytest.raises(CheckpointError, match="half precision"):
        save_checkpoint(model, tmp_path / "new.safetensors", dtype=torch.float16)
    assert not (tmp_path / "new.safetensors").exists()


def test_quantised_weights(saved):
    def change(state):
        state["norm.bias"] = state["norm.bias"].to(torch.int8)

    with pytest.raises(CheckpointError, match="norm.bias as torch.int8"):
        load_checkpoint(rewritten(saved, change))


def test_weights_under_both_names(saved):
    def change(state):
        state["model.embeddings.mask_token"] = state["mask_token"].clone()

    with pytest.raises(CheckpointError, match="the same weights twice"):
        load_checkpoint(rewritten(saved, change))


def test_bad_shards(model, tmp_path):
    path, index = tmp_path / "model.safetensors", tmp_path / "model.safetensors.index.json"
    save_checkpoint(model, path, shard_bytes=200_000)
    good = json.loads(index.read_text())
    for weight_map, expected in (
        (None, "no weight_map"),
        ({"mask_token": "../m.safetensors"}, "plain file name"),
        ({"mask_token": 3}, "plain file name"),
        (good["weight_map"] | {"extra": "other.safetensors"}, "missing; fetch all"),
        (good["weight_map"] | {"extra": good["weight_map"]["mask_token"]}, "do not list the same"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError, match=expected):
            load_checkpoint(path)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"model_type": "vit"}, "model_type 'vit'"),
        ({"num_channels": 4}, "num_channels"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"qkv_bias": False}, "qkv_bias"),
        ({"image_size": 448}, "image_size"),
        ({"image_size": [897, 448]}, "odd height"),
        ({"image_size": [896, 450]}, "multiple of patch_size"),
        ({"patch_size": [16, 8]}, "squares only"),
        ({"hidden_size": "1024"}, "hidden_size"),
        ({"mlp_dim": 4096.5}, "mlp_dim"),
        ({"merge_index": 3}, "tap_layers must rise from merge_layer"),
    ],
)
def test_other_configs_of_transformers_are_refused(saved, model, tmp_path, fields, expected):
    save_checkpoint(model, tmp_path / "folder")
    config = tmp_path / "folder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | fields))
    with pytest.raises(CheckpointError, match=expected):
        load_checkpoint(tmp_path / "folder")
