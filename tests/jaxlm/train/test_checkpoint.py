# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: bit for bit on any mesh; damage is found; half a checkpoint is none."""

import json
import shutil

import jax
import numpy as np
import pytest

from jaxlm.core.errors import CheckpointError
from jaxlm.train.checkpoint import (
    Checkpointer,
    Identity,
    list_checkpoints,
    newest_whole,
    restore,
    restore_host,
)
from jaxlm.train.sealing import verify
from jaxlm.train.setup import on_mesh
from tests.jaxlm.train.conftest import changed

IDENTITY = Identity("config", "data")


@pytest.fixture
def saved(tmp_path, make_trainer):
    """(folder, host copy of a state without a zero) on a 4 x 2 mesh, saved as step 1."""
    trainer = make_trainer(fsdp=4, model=2)
    rng = np.random.default_rng(0)
    draw = lambda x: jax.device_put(rng.normal(1, 0.1, x.shape).astype(x.dtype), x.sharding)
    with on_mesh(trainer.mesh, trainer.rules):
        state = jax.tree.map(draw, trainer.init(jax.random.key(0)))
        checkpointer = Checkpointer(tmp_path, keep=2, identity=IDENTITY)
        checkpointer.save(1, state, {"pieces": np.arange(3, dtype=np.uint64)})
        checkpointer.close()
    return tmp_path, jax.device_get(state)


def test_what_the_host_remembers_is_kept_beside_the_state(saved):
    folder, _ = saved
    ((name, pieces),) = restore_host(folder, 1).items()
    np.testing.assert_array_equal(pieces, [0, 1, 2])
    assert (name, pieces.dtype) == ("pieces", np.uint64)
    (folder / "00000001" / "host.npz").unlink()
    with pytest.raises(CheckpointError, match="host.npz is missing"):
        verify(folder / "00000001")


@pytest.mark.parametrize(
    "sizes", [{}, {"data": 8}, {"fsdp": 8}, {"slice": 2, "pipeline": 2, "context": 2}], ids=str
)
def test_a_state_moves_to_any_mesh_bit_for_bit(saved, make_trainer, sizes):
    folder, want = saved
    like = make_trainer(**sizes).abstract_state
    got = restore(folder, 1, like)
    for a, b, leaf in zip(*map(jax.tree.leaves, (got, want, like)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.sharding.is_equivalent_to(leaf.sharding, a.ndim) and a.dtype == leaf.dtype


def test_every_flipped_byte_of_every_file_is_found(saved, make_trainer):
    folder, _ = saved
    like, rng = make_trainer().abstract_state, np.random.default_rng(0)
    files = [p for p in (folder / "00000001" / "state").rglob("*") if p.is_file()]
    for path in [*files, folder / "00000001" / "host.npz"]:
        whole = path.read_bytes()
        for at in rng.integers(0, max(len(whole), 1), 3) if whole else ():
            damaged = bytearray(whole)
            damaged[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=f"{path.name}.* is damaged"):
                restore(folder, 1, like)
        path.write_bytes(whole)
    assert int(restore(folder, 1, like).step) == 1


def test_a_damaged_checkpoint_is_passed_over_aloud_and_none_left_is_an_error(saved, make_trainer):
    folder, _ = saved
    (folder / "00000002" / "state").mkdir(parents=True)
    manifest = json.loads((folder / "00000001" / "manifest.json").read_text())
    manifest["files"] = {"gone": {"crc32": 0, "size": 1}}
    (folder / "00000002" / "manifest.json").write_text(json.dumps(manifest))
    notes = []
    assert newest_whole(folder, notes.append) == 1 and "gone is missing" in notes[0]
    (folder / "00000001" / "state" / "_METADATA").write_text("")
    with pytest.raises(CheckpointError, match="all checkpoints .* are damaged"):
        newest_whole(folder, notes.append)


def test_a_damaged_checkpoint_is_written_again_when_its_step_comes_back(saved, make_trainer):
    folder, want = saved
    (folder / "00000001" / "state" / "_METADATA").write_text("")
    checkpointer = Checkpointer(folder, keep=2, identity=IDENTITY)
    checkpointer.save(1, want)
    checkpointer.close()
    assert int(restore(folder, 1, make_trainer().abstract_state).step) == 1


def test_an_unsealed_step_is_no_checkpoint_and_is_cleared_away(saved):
    folder, _ = saved
    (folder / "00000009" / "state").mkdir(parents=True)
    (folder / "00000001.orbax-checkpoint-tmp").mkdir()
    assert list_checkpoints(folder) == [1]
    Checkpointer(folder, keep=2, identity=IDENTITY).close()
    assert sorted(p.name for p in folder.iterdir()) == ["00000001"]


def test_another_model_or_other_data_is_refused_by_name(saved, make_trainer):
    folder, _ = saved
    wider = make_trainer(changed("model", ffn_dim=128)).abstract_state
    with pytest.raises(CheckpointError, match=r"of another model: .*w_down.*64.*128.*more"):
        restore(folder, 1, wider)
    cast = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, "bfloat16"), wider)
    with pytest.raises(CheckpointError, match="bfloat16"):  # Orbax alone would cast silently
        restore(folder, 1, cast)
    with pytest.raises(CheckpointError, match="trained on other data"):
        restore(folder, 1, make_trainer().abstract_state, data_id="other")


def test_only_the_newest_are_kept_and_the_old_go_seal_first(saved, make_trainer):
    folder, want = saved
    checkpointer = Checkpointer(folder, keep=2, identity=IDENTITY)
    for step in (2, 3):
        checkpointer.save(step, want)
    checkpointer.close()
    assert list_checkpoints(folder) == [2, 3]


def test_a_full_or_closed_disk_is_one_line_and_the_old_checkpoint_stands(saved, monkeypatch):
    folder, want = saved
    checkpointer = Checkpointer(folder, keep=2, identity=IDENTITY)
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(
        "jaxlm.train.checkpoint.write_json_atomic", lambda *_: (_ for _ in ()).throw(full)
    )
    checkpointer.save(2, want)
    with pytest.raises(CheckpointError, match="cannot save .*00000002: No space left on device"):
        checkpointer.wait()
    checkpointer.close()
    assert list_checkpoints(folder) == [1]


def test_what_is_no_step_is_left_alone(tmp_path, make_trainer):
    """A person's notes, a copy of a checkpoint under another name."""
    folder = tmp_path / "checkpoints"
    checkpointer = Checkpointer(folder, keep=2, identity=IDENTITY)
    checkpointer.save(1, make_trainer().init(jax.random.key(0)))
    checkpointer.close()
    (folder / "mine").mkdir()
    (folder / "mine" / "notes.txt").write_text("precious")
    shutil.copytree(folder / "00000001", folder / "00000001.bak")
    shutil.copytree(folder / "00000001", folder / "best" / "00000001")
    assert list_checkpoints(folder) == [1]
    Checkpointer(folder, keep=2, identity=IDENTITY).close()
    assert {p.name for p in folder.iterdir()} == {"00000001", "00000001.bak", "best", "mine"}
    assert (folder / "mine" / "notes.txt").exists() and (folder / "best" / "00000001").exists()


@pytest.mark.parametrize("text", ["{}", "[]", "null", '{"format": 1}', '{"format": 1, "step": 2}'])
def test_a_manifest_that_says_nothing_is_damage(tmp_path, make_trainer, text):
    folder = tmp_path / "checkpoints"
    state = make_trainer().init(jax.random.key(0))
    checkpointer = Checkpointer(folder, keep=2, identity=IDENTITY)
    for step in (1, 2):
        checkpointer.save(step, state)
    checkpointer.close()
    (folder / "00000002" / "manifest.json").write_text(text)
    notes = []
    assert newest_whole(folder, notes.append) == 1
    assert "00000002/manifest.json is damaged" in notes[0]
