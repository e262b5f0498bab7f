import dataclasses
import json
import os
import resource
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from forked import Forked

from sigline.trainer import config
from sigline.trainer.inputs import data
from sigline.trainer.models import two_tower
from sigline.trainer.models.two_tower import named_variables
from sigline.trainer.training import loop, preemption, train_step
from sigline.trainer.weights import model_weights, weight_folders


def _running(settings, **changes):
    """Returns a configuration with other fields, of itself or of how it runs."""
    names = {item.name for item in dataclasses.fields(config.RunConfig)}
    run = {name: changes.pop(name) for name in names & changes.keys()}
    return dataclasses.replace(settings, run=dataclasses.replace(settings.run, **run), **changes)


@pytest.fixture(scope="module")
def complete():
    """A model with all that the recipe's has: an attention pool and biases."""
    tiny = config.tiny(config.load_recipe("siglip_demo"))
    return config.override(tiny, ["image.depth=1", "text.depth=1"])


@pytest.fixture(scope="module")
def tiny(complete, few_parameters):
    return config.override(complete, few_parameters)


def _train(tiny, split_dir, vocabulary, folder, **options):
    return loop.train(
        tiny, split_dir=split_dir, vocabulary=vocabulary, checkpoint_dir=folder, **options
    )


def _weights(result):
    return {name: value.numpy() for name, value in named_variables(result.model).items()}


def _logged(folder):
    """Returns the scalars in TensorBoard's files, in their order, by name."""
    found = {}
    for path in folder.glob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(value.tensor)
    return found


def _losses(folder):
    return [float(tf.make_ndarray(value)) for value in _logged(folder)["loss"]]


class Run(NamedTuple):
    """A run that several tests read: the folders of its checkpoints and logs, and its end."""

    checkpoints: Path
    logs: Path
    weights: dict
    final_loss: float


@pytest.fixture(scope="module")
def whole(tiny, split_dir, vocabulary, tmp_path_factory):
    """An uninterrupted run, of which the last checkpoint and those of every other step are left.

    It monitors attention, which the runs that are compared with it do not: not a bit may differ.
    """
    folder = tmp_path_factory.mktemp("whole")
    kept = _running(tiny, checkpoint_steps=1, keep_checkpoints=1, keep_every_steps=2)
    kept = _running(kept, monitor_attention=True)
    result = _train(kept, split_dir, vocabulary, folder / "ck", log_dir=folder / "logs")
    return Run(folder / "ck", folder / "logs", _weights(result), result.final_loss)


class _Killed(BaseException):
    """Stands for a kill: nothing in the loop may catch it."""


@pytest.fixture(scope="module")
def killed(tiny, split_dir, vocabulary, tmp_path_factory):
    """Checkpoints of a run that was killed after that of step 2 and some more work."""
    folder = tmp_path_factory.mktemp("killed")
    make_step, calls = loop.make_train_step, []

    def _dying(*args):
        step = make_step(*args)

        def _step(*args):
            calls.append(1)
            if len(calls) == 4:
                raise _Killed
            return step(*args)

        return _step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_train_step", _dying)
        with pytest.raises(_Killed):
            _train(tiny, split_dir, vocabulary, folder)
    return folder


def _check_weights(found, expected):
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_resumed_run_equals_the_uninterrupted_one(
    tiny, split_dir, vocabulary, whole, killed, tmp_path
):
    folder = shutil.copytree(killed, tmp_path / "killed")
    resumed = _train(tiny, split_dir, vocabulary, folder)
    assert resumed.first_step == 2
    _check_weights(_weights(resumed), whole.weights)


def test_finished_run_is_not_trained_again(tiny, split_dir, vocabulary, whole, tmp_path):
    folder = shutil.copytree(whole.checkpoints, tmp_path / "ck")
    again = _train(tiny, split_dir, vocabulary, folder)
    assert again.first_step == tiny.steps
    _check_weights(_weights(again), whole.weights)


def test_loss_falls(tiny, split_dir, vocabulary, tmp_path):
    longer = _running(tiny, steps=60, checkpoint_steps=100)
    end = _train(longer, split_dir, vocabulary, tmp_path / "ck", log_dir=tmp_path / "logs")
    assert end.final_loss < 0.9 * _losses(tmp_path / "logs")[0]


def test_scalars_reach_tensorboard(whole):
    assert _logged(whole.logs).keys() >= {
        "loss",
        "temperature",
        "bias",
        "positive_logit_mean",
        "negative_logit_mean",
        "images_per_second",
        "data_wait_fraction",
    }


def test_attention_of_each_block_reaches_tensorboard(tiny, whole):
    logged = _logged(whole.logs)
    for tower in ("image", "text"):
        for field in ("max_logit", "entropy", "entropy_share"):
            values = logged[f"attention_{field}/{tower}/encoder/block_0"]
            assert len(values) == tiny.steps
            assert all(float(tf.make_ndarray(value)) >= 0 for value in values)
    assert len(logged["attention/max_logit"]) == tiny.steps
    assert len(logged["attention/min_entropy_share"]) == tiny.steps


def _wild(tiny, **changes):
    """A run whose loss is never finite."""
    # Softplus of it is finite, and the sum over pairs is not.
    similarity = config.SimilarityConfig(bias_init=3e38)
    return _running(tiny, similarity=similarity, **changes)


def test_loss_that_is_not_finite_stops_the_run_and_names_the_records(
    tiny, split_dir, vocabulary, tmp_path, scene_records
):
    wild = _wild(tiny, log_steps=1)
    with pytest.raises(RuntimeError, match=r"no longer finite. Received: 1 steps .* step 1, whose"):
        _train(wild, split_dir, vocabulary, tmp_path)
    written = json.loads((tmp_path / "not_finite_step_1.json").read_text())
    assert written["keys"] == data.batch_keys(split_dir, wild, number=1)
    assert len(set(written["keys"])) == tiny.global_batch_size
    assert set(written["keys"]) < {item.key for item in scene_records}


def test_steps_that_are_not_finite_can_be_left_out(tiny, split_dir, vocabulary, tmp_path):
    wild = _wild(tiny, max_skipped_steps=tiny.steps)
    result = _train(wild, split_dir, vocabulary, tmp_path / "ck", log_dir=tmp_path / "logs")
    start = two_tower.named_variables(two_tower.build(wild))
    for name, value in _weights(result).items():
        np.testing.assert_array_equal(value, start[name].numpy(), err_msg=name)
    less = _running(wild, max_skipped_steps=tiny.steps - 1)
    with pytest.raises(RuntimeError, match=rf"Received: {tiny.steps} steps"):
        _train(less, split_dir, vocabulary, tmp_path / "less")


def test_sigterm_saves_the_step_and_the_run_goes_on_from_there(
    tiny, split_dir, vocabulary, whole, tmp_path
):
    rare = _running(tiny, checkpoint_steps=100)
    make_step, calls = loop.make_train_step, []

    def _signalled(*args):
        step = make_step(*args)

        def _step(*args):
            calls.append(1)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(*args)

        return _step

    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_train_step", _signalled)
        with pytest.raises(preemption.Preempted, match="Stopped by SIGTERM; step 3 is saved"):
            _train(rare, split_dir, vocabulary, tmp_path / "stopped")
    assert signal.getsignal(signal.SIGTERM) == before
    resumed = _train(rare, split_dir, vocabulary, tmp_path / "stopped")
    assert resumed.first_step == 3
    _check_weights(_weights(resumed), whole.weights)


def test_checkpoints_are_due_by_minutes():
    assert loop._is_late(time.monotonic() - 61, 1.0)
    assert not loop._is_late(time.monotonic() - 59, 1.0)
    assert not loop._is_late(time.monotonic() - 1e6, None)


def test_checkpoints_by_minutes_are_saved(tiny, split_dir, vocabulary, tmp_path):
    often = _running(tiny, checkpoint_steps=100, checkpoint_minutes=1e-9)
    _train(often, split_dir, vocabulary, tmp_path)
    names = {path.stem for path in tmp_path.glob("ckpt-*.index")}
    assert names == {f"ckpt-{tiny.steps - 1}", f"ckpt-{tiny.steps}"}


def test_some_checkpoints_are_kept_for_good(tiny, whole):
    folder = whole.checkpoints
    assert {path.stem for path in folder.glob("ckpt-*.index")} == {f"ckpt-{tiny.steps}"}
    assert {p.stem for p in (folder / "kept").glob("*.index")} == {"step-2", "step-4"}
    reader = tf.train.load_checkpoint(str(folder / "kept" / "step-4"))
    found = reader.get_tensor("parameters/bias/.ATTRIBUTES/VARIABLE_VALUE")
    assert found == whole.weights["bias"]


def test_kept_checkpoints_need_no_multiple_of_the_others(tiny, split_dir, vocabulary, tmp_path):
    kept = _running(tiny, checkpoint_steps=100, keep_every_steps=3)
    _train(kept, split_dir, vocabulary, tmp_path)
    assert {path.stem for path in (tmp_path / "kept").glob("*.index")} == {"step-3"}


def test_run_stays_exact_when_its_newest_checkpoint_is_damaged(
    tiny, whole, split_dir, vocabulary, tmp_path, capsys
):
    folder = shutil.copytree(whole.checkpoints, tmp_path / "ck")
    for path in (*folder.glob(f"ckpt-{tiny.steps}.data*"), *folder.glob("kept/step-4.data*")):
        path.write_bytes(path.read_bytes()[:1000])
    result = _train(tiny, split_dir, vocabulary, folder)
    assert result.first_step == 2
    assert f"ckpt-{tiny.steps} is damaged" in capsys.readouterr().err
    _check_weights(_weights(result), whole.weights)


def test_checkpoint_that_does_not_fit_on_the_disk_is_one_clear_error(
    tiny, split_dir, vocabulary, killed, tmp_path
):
    folder = shutil.copytree(killed, tmp_path / "killed")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow beyond this: as good as a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(RuntimeError, match="checkpoint of step 4 could not be written"):
            _train(tiny, split_dir, vocabulary, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert _train(tiny, split_dir, vocabulary, folder).first_step == 2


def test_damaged_shard_is_named_with_the_place(tiny, split_dir, vocabulary, tmp_path):
    folder = shutil.copytree(split_dir, tmp_path / "Split-train")
    first, second = sorted(folder.iterdir())
    content = bytearray(second.read_bytes())
    content[len(content) // 2] ^= 0xFF
    second.write_bytes(bytes(content))
    # Small enough that the pipeline does not notice while it counts the records.
    counts = {path.name: {"records": 50, "sha256": ""} for path in (first, second)}
    manifest = {"splits": {"train": {"shards": counts}}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    longer = dataclasses.replace(tiny, steps=20)
    with pytest.raises(RuntimeError, match=rf"{second.name} after \d+ whole records: ") as caught:
        _train(longer, folder, vocabulary, tmp_path / "ck")
    assert first.name not in str(caught.value)


REPLICA_CODE = """
import json, os, signal, sys
from sigline import quiet
quiet.import_tensorflow()
import tensorflow as tf
split_dir, vocabulary, teacher, folder, replicas = sys.argv[1:]
from sigline.trainer import config
from sigline.trainer.export import saved_model
from sigline.trainer.models import two_tower
from sigline.trainer.training import loop, preemption
from sigline.trainer.weights import weight_folders
both = '[{"kind": "pairs"}, {"kind": "distill", "teacher": "t", "target": "pairs"}]'
assignments = [f"objectives={both}", "steps=3",
               "image.depth=1", "text.depth=1", "optimizer.clip_norm=0.1",
               "run.jit_compile=false", "run.checkpoint_steps=2", "run.monitor_attention=true"]
if "TF_CONFIG" in os.environ:
    assignments += ["run.strategy=multi_worker"]
else:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * int(replicas)
    )
    assignments += ["run.strategy=mirrored"]
tiny = config.override(config.tiny(config.load_recipe("siglip_demo")), assignments)
vocabulary = open(vocabulary, "rb").read()
if "SIGTERM_AT" in os.environ:
    make_step, calls = loop.make_train_step, []
    def signalled(*args):
        step = make_step(*args)
        def one(*args):
            calls.append(1)
            if len(calls) == int(os.environ["SIGTERM_AT"]):
                os.kill(os.getpid(), signal.SIGTERM)
            return step(*args)
        return one
    loop.make_train_step = signalled
try:
    result = loop.train(
        tiny,
        split_dir=split_dir,
        vocabulary=vocabulary,
        checkpoint_dir=folder,
        teachers={"t": weight_folders.load(teacher)},
    )
except (preemption.Preempted, RuntimeError) as error:
    print(json.dumps({"error": str(error)}), flush=True)
    os._exit(0)
if result.is_chief:
    model_dir = os.path.join(folder, "model")
    saved_model.export(model_dir, result.model, config=tiny, vocabulary=vocabulary)
values = two_tower.named_variables(result.model)
print(json.dumps({
    "loss": result.final_loss,
    "sums": {n: float(abs(v.numpy()).sum()) for n, v in values.items()},
    "is_chief": result.is_chief,
}))
"""


def _outcomes(processes):
    found = []
    try:
        for process in processes:
            output, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors[-3000:]
            found.append(json.loads(output.splitlines()[-1]))
    finally:
        for process in processes:
            process.kill()
    return found


def _check_equal(one, other):
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
    for name, value in one["sums"].items():
        # Softmax ignores the key's bias: its gradient is rounding noise, which Adam scales up.
        if not name.endswith("attention/key/bias"):
            assert other["sums"][name] == pytest.approx(value, rel=1e-4, abs=1e-4), name


@pytest.fixture(scope="module")
def start_replicas(complete, split_dir, vocabulary, tmp_path_factory):
    """Starts a training process of its own; mixing counts in one process aborts it."""
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary"
    path.write_bytes(vocabulary)
    settings = config.override(complete, ["seed=9"])
    values = two_tower.named_variables(two_tower.build(settings))
    values = {name: variable.numpy() for name, variable in values.items()}
    teacher = path.with_name("teacher")
    weight_folders.save(teacher, model_weights.Weights(settings, values, vocabulary))

    def _start(folder, replicas=1, environment=()):
        arguments = map(str, (split_dir, path, teacher, folder, replicas))
        output = tmp_path_factory.mktemp("replica")
        variables = os.environ | dict(environment)
        return Forked(["-c", REPLICA_CODE, *arguments], output, variables=variables)

    return _start


@pytest.fixture(scope="module")
def one_replica(start_replicas, tmp_path_factory):
    return _outcomes([start_replicas(tmp_path_factory.mktemp("one"))])[0]


def test_two_replicas_train_as_one(start_replicas, one_replica, tmp_path):
    (two,) = _outcomes([start_replicas(tmp_path, replicas=2)])
    _check_equal(one_replica, two)
    assert (tmp_path / "model" / "saved_model.pb").exists()


def _start_workers(start_replicas, folders, environments=({}, {})):
    """Starts two processes that know each other."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    workers = [f"127.0.0.1:{item.getsockname()[1]}" for item in sockets]
    for item in sockets:
        item.close()
    processes = []
    for index in range(2):
        task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        environment = {"TF_CONFIG": json.dumps(task)} | environments[index]
        processes.append(start_replicas(folders[index], environment=environment))
    return processes


def test_two_workers_train_as_one_and_the_first_one_writes(start_replicas, one_replica, tmp_path):
    first, second = _outcomes(_start_workers(start_replicas, [tmp_path, tmp_path]))
    assert (first["is_chief"], second["is_chief"]) == (True, False)
    for worker in (first, second):
        _check_equal(one_replica, worker)
    assert (tmp_path / "model" / "saved_model.pb").exists()
    assert {path.stem for path in tmp_path.glob("ckpt-*.index")} == {"ckpt-2", "ckpt-3"}


def test_sigterm_of_one_worker_stops_all_at_the_same_step(start_replicas, tmp_path):
    # The second one is told, and the first one saves; without a common folder they do not go on.
    environments = ({}, {"SIGTERM_AT": "1"})
    stopped = _outcomes(_start_workers(start_replicas, [tmp_path, tmp_path], environments))
    assert all("step 1 is saved" in worker["error"] for worker in stopped)
    assert {path.stem for path in tmp_path.glob("ckpt-*.index")} == {"ckpt-1"}
    apart = _outcomes(_start_workers(start_replicas, [tmp_path, tmp_path / "elsewhere"]))
    assert all("must go on from the same checkpoint" in worker["error"] for worker in apart)


def test_frozen_tower_keeps_its_bytes_and_has_no_moments(tiny, split_dir, vocabulary, tmp_path):
    frozen = config.override(tiny, ['optimizer.rates=[["image/.*", null], [".*", 1]]'])
    start = {n: v.numpy() for n, v in named_variables(two_tower.build(frozen)).items()}
    end = _weights(_train(frozen, split_dir, vocabulary, tmp_path))
    for name, value in start.items():
        if name.startswith("image/"):
            assert end[name].tobytes() == value.tobytes(), name
    assert (end["text/head/kernel"] != start["text/head/kernel"]).any()
    saved = [name for name, _ in tf.train.list_variables(str(tmp_path))]
    assert not [n for n in saved if n.startswith("slots/image")]
    assert [n for n in saved if n.startswith("slots/text")]


@pytest.mark.parametrize(
    "assignments",
    [
        ["objectives.pairs.loss=softmax"],
        ["objectives.pairs.negatives=hard", "objectives.pairs.negatives_per_image=2"],
        ["precision=bfloat16", "rematerialize=true", "optimizer.first_moment_dtype=bfloat16"],
    ],
    ids=["softmax", "negatives", "bfloat16"],
)
def test_options_of_the_step_train(tiny, split_dir, vocabulary, tmp_path, assignments):
    settings = config.override(tiny, ["steps=40", "run.checkpoint_steps=100", *assignments])
    _train(settings, split_dir, vocabulary, tmp_path / "ck", log_dir=tmp_path / "logs")
    found = _losses(tmp_path / "logs")
    assert len(found) == 40
    assert found[-1] < found[0]


def test_jit_compile_under_several_replicas_is_refused(tiny):
    class _TwoReplicas:
        num_replicas_in_sync = 2

    compiled = _running(tiny, jit_compile=True)
    with pytest.raises(ValueError, match=r"run\.jit_compile must be none or false"):
        train_step._compiled(compiled, _TwoReplicas())


@pytest.fixture(scope="module")
def plain_loss(complete, split_dir, vocabulary, tmp_path_factory):
    """The loss at the end of a run without XLA."""
    folder = tmp_path_factory.mktemp("plain")
    return _train(complete, split_dir, vocabulary, folder).final_loss


@pytest.mark.parametrize("jit_compile", [None, True])
def test_xla_and_plain_steps_agree(
    complete, split_dir, vocabulary, plain_loss, tmp_path, jit_compile
):
    compiled = _running(complete, jit_compile=jit_compile)
    xla = _train(compiled, split_dir, vocabulary, tmp_path)
    assert xla.final_loss == pytest.approx(plain_loss, rel=1e-4)


@pytest.mark.parametrize("size", [9, 3])
def test_batch_that_replicas_cannot_share_is_refused(tiny, split_dir, vocabulary, tmp_path, size):
    class _TwoReplicas:
        num_replicas_in_sync = 2

    odd = dataclasses.replace(tiny, global_batch_size=size)
    with pytest.raises(ValueError, match="must be a multiple of the number of replicas"):
        _train(odd, split_dir, vocabulary, tmp_path, strategy=_TwoReplicas())


def test_averages_are_exported_and_survive_an_interruption(
    tiny, split_dir, vocabulary, cut_back, tmp_path
):
    averaged = config.override(tiny, ["optimizer.schedule=constant", "optimizer.ema_decay=0.5"])
    whole = _weights(_train(averaged, split_dir, vocabulary, tmp_path / "whole"))
    name = "text/head/kernel"
    last = tf.train.load_variable(
        str(tmp_path / "whole"), f"parameters/{name.replace('/', '.S')}/.ATTRIBUTES/VARIABLE_VALUE"
    )
    assert (last != whole[name]).any()
    interrupted = cut_back(tmp_path / "whole", 2, tmp_path / "interrupted")
    resumed = _train(averaged, split_dir, vocabulary, interrupted)
    assert resumed.first_step == 2
    _check_weights(_weights(resumed), whole)


@pytest.mark.parametrize("name", ["adafactor", "lion"])
def test_optimizer_trains(tiny, split_dir, vocabulary, tmp_path, name):
    rate = {"adafactor": 1e-3, "lion": 1e-4}[name]
    settings = config.override(
        tiny, ["steps=40", "run.checkpoint_steps=100", f"optimizer.name={name}", "microbatches=2"]
    )
    settings = config.override(settings, [f"optimizer.learning_rate={rate}"])
    end = _train(settings, split_dir, vocabulary, tmp_path / "ck", log_dir=tmp_path / "logs")
    assert end.final_loss < 0.95 * _losses(tmp_path / "logs")[0]


def test_parameter_without_a_rate_is_refused_before_the_first_step(
    tiny, split_dir, vocabulary, tmp_path
):
    settings = config.override(tiny, ['optimizer.rates=[["image/.*", 1], ["text/.*", 1]]'])
    with pytest.raises(ValueError, match="No pattern matches log_temperature, bias"):
        _train(settings, split_dir, vocabulary, tmp_path)
