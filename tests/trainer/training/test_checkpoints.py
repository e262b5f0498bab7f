"""Checkpoints that are whole, damaged, cut by the power, or without their pointer."""

import numpy as np
import power_cut
import pytest
import tensorflow as tf

from sigline.trainer.training import checkpoints
from sigline.trainer.training.checkpoints import Checkpoints
from sigline.trainer.training.state import TrainState

# Larger than a block of TensorFlow's files, so that damage hits this value.
_SIZE = 5000


def _state(width=_SIZE):
    number = tf.Variable(tf.zeros((), tf.int64))
    skipped = tf.Variable(tf.zeros((2,), tf.int64))
    weights = {"image/kernel": tf.Variable(tf.zeros(width))}
    return TrainState(weights, {}, {}, number, skipped)


def _set(state, step):
    """Sets a state as it is after a step: to values that tell it."""
    kernel = state.parameters["image/kernel"]
    kernel.assign(np.random.default_rng(step).normal(size=kernel.shape).astype(np.float32))
    state.step.assign(step)


def _save(folder, *numbers, **options):
    state = _state()
    saved = Checkpoints(folder, state, **options)
    saved.restore_latest()
    for number in numbers:
        _set(state, number)
        saved.save()


def _restored(folder):
    """Returns the step that a new process goes on from; its values are exactly that step's."""
    state, expected = _state(), _state()
    found = Checkpoints(folder, state).restore_latest()
    assert found == int(state.step.numpy())
    if found:
        _set(expected, found)
    np.testing.assert_array_equal(
        state.parameters["image/kernel"].numpy(), expected.parameters["image/kernel"].numpy()
    )
    return found


def _damage(folder, name):
    (path,) = folder.glob(f"{name}.data-*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def test_newest_are_kept_and_tensorflow_finds_the_last_one(tmp_path):
    _save(tmp_path, 1, 2, 3, 4, keep=2)
    assert sorted(checkpoints.find(tmp_path)) == [3, 4]
    assert tf.train.latest_checkpoint(tmp_path) == str(tmp_path / "ckpt-4")
    assert len(list(tmp_path.glob("ckpt-*.data-*"))) == 2
    assert _restored(tmp_path) == 4


def test_checkpoints_of_earlier_versions_are_gone_on_from(tmp_path):
    # As TensorFlow's manager wrote them, with a counter of its own.
    state = _state()
    manager = tf.train.CheckpointManager(
        tf.train.Checkpoint(**state._asdict()), str(tmp_path), max_to_keep=2
    )
    for step in (5, 6):
        _set(state, step)
        manager.save(checkpoint_number=step)
    assert _restored(tmp_path) == 6
    _save(tmp_path, 7, keep=2)
    assert sorted(checkpoints.find(tmp_path)) == [6, 7]


@pytest.mark.parametrize("options", [{}, {"keep_every_steps": 1}])
def test_cut_of_the_power_leaves_a_checkpoint_that_is_whole(tmp_path, options, capsys):
    root = tmp_path / "run"
    root.mkdir()
    for number, before in ((1, 0), (2, 1)):
        found = power_cut.states(root, lambda number=number: _save(root, number, **options))
        # Each as it would be on the disk; few are in a row of a hundred.
        after = {
            _restored(power_cut.lay_out(state, tmp_path / f"cut-{number}-{index}"))
            for index, state in enumerate(found)
        }
        assert after == {before, number}
    capsys.readouterr()


def test_pointer_is_written_when_what_it_names_is_on_the_disk(tmp_path):
    root = tmp_path / "run"
    root.mkdir()
    _save(root, 1)
    found = power_cut.states(root, lambda: _save(root, 2, keep=1))
    named = [state for state in found if b"ckpt-2" in (state["checkpoint"] or b"")]
    assert named
    whole = {name: value for name, value in found[-1].items() if name.startswith("ckpt-2")}
    assert len(whole) == 2
    assert all(whole.items() <= state.items() for state in named)


@pytest.mark.parametrize("kind", ["flipped", "short", "empty", "away", "index"])
def test_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path, kind, capsys):
    _save(tmp_path, 1, 2)
    (path,) = tmp_path.glob("ckpt-2.data-*")
    if kind == "flipped":
        _damage(tmp_path, "ckpt-2")
    elif kind == "short":
        path.write_bytes(path.read_bytes()[:1000])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "away":
        path.unlink()
    else:
        (tmp_path / "ckpt-2.index").write_bytes(b"")
    assert _restored(tmp_path) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"sigline: The checkpoint {tmp_path / 'ckpt-2'} is damaged: ")
    assert said.endswith(f"The run goes on from {tmp_path / 'ckpt-1'}, of step 1.\n")
    # The damaged one is replaced when the run is there again.
    _save(tmp_path, 2)
    assert "damaged" in capsys.readouterr().err
    assert _restored(tmp_path) == 2
    assert capsys.readouterr().err == ""


def test_checkpoint_that_is_kept_for_good_is_the_last_resort(tmp_path, capsys):
    _save(tmp_path, 1, 2, 3, keep=2, keep_every_steps=1)
    _damage(tmp_path, "ckpt-3")
    assert _restored(tmp_path) == 3
    assert f"goes on from {tmp_path / 'kept' / 'step-3'}, of step 3" in capsys.readouterr().err
    for name in ("ckpt-2", "kept/step-3"):
        _damage(tmp_path, name)
    assert _restored(tmp_path) == 2
    assert f"goes on from {tmp_path / 'kept' / 'step-2'}, of step 2" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "", "\x00\x00", "model_checkpoint_path: "])
def test_pointer_that_is_missing_or_empty_never_starts_at_step_0(tmp_path, content, capsys):
    _save(tmp_path, 1, 2)
    (tmp_path / "checkpoint").unlink()
    if content is not None:
        (tmp_path / "checkpoint").write_text(content)
    assert _restored(tmp_path) == 2
    kind = "missing" if content is None else "empty or damaged"
    assert f"{tmp_path / 'checkpoint'} is {kind}. The run goes on" in capsys.readouterr().err
    _save(tmp_path, 3)
    capsys.readouterr()
    assert _restored(tmp_path) == 3
    assert capsys.readouterr().err == ""


def test_run_goes_back_where_its_pointer_is_set_back(tmp_path, capsys):
    _save(tmp_path, 1, 2)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "ckpt-1"\n')
    assert _restored(tmp_path) == 1
    assert capsys.readouterr().err == ""


def test_run_without_a_whole_checkpoint_is_one_clear_error(tmp_path):
    _save(tmp_path, 1, 2)
    for name in ("ckpt-1", "ckpt-2"):
        _damage(tmp_path, name)
    with pytest.raises(RuntimeError, match=r"No checkpoint of the run is whole") as caught:
        _restored(tmp_path)
    assert "ckpt-2 is damaged" in str(caught.value)
    assert f"directory={tmp_path}" in str(caught.value)
    (tmp_path / "checkpoint").unlink()
    with pytest.raises(RuntimeError, match=r"No checkpoint of the run is whole"):
        _restored(tmp_path)


def test_first_checkpoint_that_was_cut_starts_the_run_again_and_says_so(tmp_path, capsys):
    _save(tmp_path, 1)
    (tmp_path / "checkpoint").unlink()
    _damage(tmp_path, "ckpt-1")
    assert _restored(tmp_path) == 0
    assert "It was the first and was not finished" in capsys.readouterr().err


def test_checkpoint_of_another_model_is_no_damage(tmp_path):
    _save(tmp_path, 1, 2)
    with pytest.raises(RuntimeError, match=r"ckpt-2 is of another model"):
        Checkpoints(tmp_path, _state(width=7)).restore_latest()


def test_checkpoint_that_cannot_be_written_leaves_those_before(tmp_path, monkeypatch):
    _save(tmp_path, 1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def _full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", _full)
    with pytest.raises(RuntimeError, match=r"step 2 could not be written.*The disk of .* is full"):
        _save(tmp_path, 2)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    _save(tmp_path, 2)
    assert _restored(tmp_path) == 2
