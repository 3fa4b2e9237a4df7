"""Checkpoints: every format there and back, names and configs, fingerprints, atomic writing."""

from __future__ import annotations

import copy
import dataclasses
import os
import sys

import pytest
import torch
from random_models import TINY, TINY_CACHED, random_inputs, random_model
from safetensors.torch import load_file, save_file

from incontext.model import weight_files
from incontext.model.checkpoint import (
    CheckpointError,
    fingerprint,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from incontext.model.config import PRESETS, SegGPTConfig
from incontext.model.published_format import infer_config, mlp_ratio
from incontext.model.seggpt import SegGPT
from incontext.model.transformers_format import (
    KEY_TABLE,
    config_from_transformers,
    config_to_transformers,
    key_from_transformers,
    key_to_transformers,
)

# The published depth and taps, which its format presumes, at the smallest widths.
PUBLISHED = dataclasses.replace(
    SegGPTConfig(),
    image_size=(32, 16),
    patch_size=8,
    width=16,
    heads=2,
    decoder_width=4,
    pretrain_grid=(3, 3),
)


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture
def saved(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save_checkpoint(model, path, metadata={"name": "tiny", "licence": "Apache-2.0"})
    return path


def assert_same_model(actual, expected):
    assert actual.config == expected.config
    state, wanted = actual.state_dict(), expected.state_dict()
    assert list(state) == list(wanted)
    for key, tensor in wanted.items():
        assert torch.equal(state[key], tensor), key


# Formats


def test_own_format_round_trips(model, saved):
    checkpoint = read_checkpoint(saved)
    assert checkpoint.metadata == {"name": "tiny", "licence": "Apache-2.0"}
    loaded = load_checkpoint(saved)
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert_same_model(loaded, model)


def test_a_cacheable_model_round_trips(tmp_path):
    model = random_model(TINY_CACHED)
    save_checkpoint(model, tmp_path / "m.safetensors")
    assert_same_model(load_checkpoint(tmp_path / "m.safetensors"), model)


def test_loaded_weights_do_not_depend_on_the_file(model, saved):
    loaded = load_checkpoint(saved)
    size = saved.stat().st_size
    with saved.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"\xff" * (size // 2))
    assert_same_model(loaded, model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_storage_loads_as_float32(model, tmp_path, dtype):
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    save_checkpoint(model, whole)
    save_checkpoint(model, half, dtype=dtype)
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    assert next(model.parameters()).dtype == torch.float32  # the argument is not changed
    loaded = load_checkpoint(half)
    for key, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, model.state_dict()[key].to(dtype).float())
    assert load_checkpoint(half, dtype=torch.bfloat16).mask_token.dtype == torch.bfloat16


def test_shards_round_trip(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save_checkpoint(model, path, metadata={"name": "tiny"}, shard_bytes=100_000)
    shards = sorted(tmp_path.glob("model-*-of-*.safetensors"))
    assert len(shards) > 2 and not path.exists()
    for shard in shards:  # decoder_embed.weight alone is larger
        assert shard.stat().st_size < 120_000 or len(load_file(shard)) == 1
    for name in (path, tmp_path / "model.safetensors.index.json", tmp_path):
        assert_same_model(load_checkpoint(name), model)
    assert read_checkpoint(path).metadata == {"name": "tiny"}
    save_checkpoint(model, path)  # one file takes the place of the shards
    assert_same_model(load_checkpoint(path), model)
    assert not (tmp_path / "model.safetensors.index.json").exists()


def test_shards_of_an_interrupted_save_do_not_mix_with_older_ones(model, tmp_path, monkeypatch):
    path, other = tmp_path / "model.safetensors", copy.deepcopy(model)
    with torch.no_grad():
        other.mask_token += 1
    save_checkpoint(model, path, shard_bytes=100_000)
    write, calls = weight_files._write_one, []

    def interrupt(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(*args)

    monkeypatch.setattr(weight_files, "_write_one", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(other, path, shard_bytes=100_000)
    assert_same_model(load_checkpoint(path), model)
    assert not list(tmp_path.glob(".*"))


def test_published_format_round_trips_without_a_config(tmp_path):
    model = random_model(PUBLISHED)
    path = tmp_path / "seggpt.pth"
    save_checkpoint(model, path)
    content = torch.load(path, weights_only=True)
    assert list(content) == ["model"] and set(content["model"]) == set(model.state_dict())
    assert_same_model(load_checkpoint(path), model)


@pytest.mark.parametrize("zipped", [True, False])
def test_both_kinds_of_pth_load(model, tmp_path, zipped):
    torch.save({"model": model.state_dict()}, tmp_path / "m.pth", _use_new_zipfile_serialization=zipped)
    assert_same_model(load_checkpoint(tmp_path / "m.pth", config=TINY), model)
    torch.save(model.state_dict(), tmp_path / "bare.pth", _use_new_zipfile_serialization=zipped)
    assert_same_model(load_checkpoint(tmp_path / "bare.pth", config=TINY), model)


def weight_shapes(config):
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in SegGPT(config).state_dict().items()}


def test_the_published_shapes_give_the_published_config():
    assert infer_config(weight_shapes(SegGPTConfig())) == SegGPTConfig()


@torch.no_grad()
def test_a_folder_for_transformers_and_back(model, tmp_path):
    from transformers import SegGptForImageSegmentation

    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    save_checkpoint(model, ours, metadata={"licence": "Apache-2.0"})
    port, report = SegGptForImageSegmentation.from_pretrained(ours, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    query, images, targets = random_inputs(batch=2, count=1)
    painting = port.eval()(query, images[:, 0], targets[:, 0]).pred_masks[:, :, 32:]
    torch.testing.assert_close(painting, model(query, images, targets), atol=1e-5, rtol=0)

    port.save_pretrained(theirs)
    assert_same_model(load_checkpoint(theirs), model)
    assert_same_model(load_checkpoint(theirs / "model.safetensors"), model)
    assert read_checkpoint(ours).metadata == {"licence": "Apache-2.0"}


def test_transformers_shards_load(model, tmp_path):
    from transformers import SegGptForImageSegmentation

    save_checkpoint(model, tmp_path / "ours")
    port = SegGptForImageSegmentation.from_pretrained(tmp_path / "ours")
    port.save_pretrained(tmp_path / "theirs", max_shard_size="100KB")
    assert not (tmp_path / "theirs" / "model.safetensors").exists()
    assert_same_model(load_checkpoint(tmp_path / "theirs"), model)


def test_transformers_weights_without_their_config(tmp_path):
    """Where the shapes tell all, as those of the published model do."""
    model = random_model(PUBLISHED)
    save_checkpoint(model, tmp_path)
    (tmp_path / "config.json").unlink()
    assert_same_model(load_checkpoint(tmp_path), model)


def test_a_config_by_hand(model, tmp_path):
    save_file(model.state_dict(), tmp_path / "bare.safetensors")
    with pytest.raises(CheckpointError, match=r"do not tell tap_layers and merge_layer.*config=SegGPTConfig"):
        load_checkpoint(tmp_path / "bare.safetensors")
    assert_same_model(load_checkpoint(tmp_path / "bare.safetensors", config=TINY), model)


# Names and configs


def test_the_key_table_is_reversible():
    for config in PRESETS.values():
        ours = list(weight_shapes(config))
        theirs = [key_to_transformers(key) for key in ours]
        assert len(set(theirs)) == len(ours)
        assert not set(theirs) & set(ours)  # every weight is in the table
        assert [key_from_transformers(key) for key in theirs] == ours


def test_the_key_table_has_no_row_too_many():
    for column in (0, 1):
        names = [row[column] for row in KEY_TABLE]
        assert len(set(names)) == len(names)
    for ours, _ in KEY_TABLE:
        assert any(key.startswith(ours.replace("{n}", "0")) for key in weight_shapes(TINY)), ours


@pytest.mark.parametrize("key", ["head.weight", "blocks.x.attn.qkv.weight", "mask_token.weight", "norm."])
def test_names_that_are_not_in_the_table_stay(key):
    assert key_to_transformers(key) == key == key_from_transformers(key)


def test_the_config_of_transformers_is_ours():
    from transformers import SegGptConfig

    assert config_from_transformers(SegGptConfig().to_dict()) == SegGPTConfig()
    assert config_from_transformers({}) == SegGPTConfig()  # defaults may be left out
    ours = dataclasses.replace(TINY, ids_per_pass=3, loss_beta=0.5, mlp_ratio=3.0, refine=True)
    assert config_from_transformers(SegGptConfig(**config_to_transformers(ours)).to_dict()) == ours


@pytest.mark.parametrize("width", [7, 32, 48, 49, 1000])
def test_the_mlp_width_survives_as_a_ratio(width):
    assert all(int(width * mlp_ratio(hidden, width)) == hidden for hidden in range(1, 5 * width))


def test_models_that_other_code_would_run_wrongly_are_not_exported(tmp_path):
    cacheable = random_model(TINY_CACHED)
    oblong = random_model(dataclasses.replace(TINY, pretrain_grid=(4, 2)))
    for model, name, expected in (
        (cacheable, "folder", "examples do not attend"),
        (cacheable, "m.pth", "examples do not attend"),
        (oblong, "folder", "square position embedding"),
        (oblong, "m.pth", "published code is fixed"),
        (random_model(TINY), "m.pth", "published code is fixed"),
        (random_model(TINY), "m.onnx", "expected NAME.safetensors, NAME.pth or a folder"),
    ):
        with pytest.raises(CheckpointError, match=expected):
            save_checkpoint(model, tmp_path / name)
    assert not list(tmp_path.iterdir())


# Fingerprints


def test_fingerprint_is_of_what_the_model_computes(model, saved, tmp_path):
    expected = fingerprint(model)
    assert len(expected) == 64
    assert fingerprint(read_checkpoint(saved)) == fingerprint(load_checkpoint(saved)) == expected
    assert fingerprint(load_checkpoint(saved, dtype=torch.bfloat16)) == expected
    save_checkpoint(model, tmp_path / "folder")
    assert fingerprint(read_checkpoint(tmp_path / "folder")) == expected

    other = random_model(dataclasses.replace(TINY, stochastic_depth=0.5, loss_beta=1.0, ids_per_pass=2))
    assert fingerprint(other) == expected
    assert fingerprint(random_model(seed=1)) != expected
    assert fingerprint(random_model(TINY_CACHED)) != expected
    changed = random_model()
    with torch.no_grad():
        changed.decoder_pred[3].bias[0] += 0.1
    assert fingerprint(changed) != expected


def test_fingerprint_is_the_same_in_every_release():
    """Prompt packs name the model that they were made for: this value must not change."""
    model = random_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.arange(parameter.numel()).view_as(parameter) % 7 / 4)
    assert fingerprint(model) == "59ebccb2d602b1ce1c3f72ec376ccedf6aa87ae9122605f24117b3536ee5e4d9"


# Writing


def test_a_failed_save_leaves_the_old_file(model, saved, monkeypatch):
    before = saved.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("incontext.model.weight_files.save_file", fail)
    with pytest.raises(CheckpointError, match="cannot write .* disk full"):
        save_checkpoint(model, saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_saving_a_file_over_itself(model, saved):
    save_checkpoint(read_checkpoint(saved), saved, metadata={"card": "trained on nothing"})
    assert_same_model(load_checkpoint(saved), model)
    assert read_checkpoint(saved).metadata == {
        "name": "tiny",
        "licence": "Apache-2.0",
        "card": "trained on nothing",
    }


def test_arguments_of_save(model, tmp_path):
    for metadata in ({"incontext.config": "x"}, {"format": "x"}, {"count": 3}):
        with pytest.raises(CheckpointError, match="metadata must be text"):
            save_checkpoint(model, tmp_path / "m.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match="cannot store weights as torch.int8"):
        save_checkpoint(model, tmp_path / "m.safetensors", dtype=torch.int8)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot write"):
        save_checkpoint(model, tmp_path / "file" / "m.safetensors")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX modes")
def test_saved_files_can_be_read_by_others(saved):
    mask = os.umask(0)
    os.umask(mask)
    assert saved.stat().st_mode & 0o777 == 0o666 & ~mask
