import dataclasses
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from sigline.components.publish import publishing
from sigline.schemas import signatures, versions
from sigline.serving.checks import infra_check
from sigline.serving.server import warmup
from sigline.serving.server.engine import LoadedVersion

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def asked(contract_base, scene_records):
    """Images, texts and what the model makes of them; the embedding of an image is not known."""
    records = scene_records[:3]
    images, texts = [item.image for item in records], [item.text[0] for item in records]
    served = tf.saved_model.load(str(contract_base / "3")).signatures
    image = served["embed_image"](image_bytes=tf.constant(images))["embedding"].numpy()
    text = served["embed_text"](text=tf.constant(texts))["embedding"].numpy()
    image[1] = np.nan
    return images, texts, infra_check.Golden(image, text, 1e-4)


@pytest.fixture(scope="module")
def checked(contract_base, asked):
    """What is found of a model that answers as it did in the trainer, and in time."""
    images, texts, golden = asked
    return infra_check.check_serving(
        contract_base / "3", images, texts, golden=golden, max_latency_ms=60_000
    )


def test_good_model_is_served_and_asked(contract_base, checked, tmp_path):
    assert checked.figures["signatures_run"] == 6
    assert checked.figures["requests"] == 46
    assert checked.figures["median_latency_ms"] > 0
    published = publishing.publish(
        contract_base / "3", tmp_path / "serving", extras={signatures.WARMUP_FILE: checked.warm_up}
    )
    assert versions.verify(published.path) == published.digest
    # Two sizes of each, as TensorFlow reads them.
    engine = LoadedVersion(published.path, 1)
    assert warmup.replay(engine, published.path) == 12
    path = published.path / "assets.extra" / signatures.WARMUP_FILE
    records = [x.numpy() for x in tf.data.TFRecordDataset(str(path))]
    requests = [prediction_log_pb2.PredictionLog.FromString(x).predict_log.request for x in records]
    assert {x.model_spec.signature_name for x in requests} == set(engine.signature_defs)
    engine.close()


@pytest.mark.usefixtures("checked")
def test_answers_must_be_those_of_the_trainer(contract_base, asked):
    images, texts, golden = asked
    wrong = dataclasses.replace(golden, text=np.roll(golden.text, 1, axis=0))
    with pytest.raises(infra_check.InfraError, match="text embeddings differ from those of the mo"):
        infra_check.check_serving(contract_base / "3", images, texts, golden=wrong)


def test_model_that_takes_too_much_memory_is_refused(contract_base, scene_records):
    images = [scene_records[0].image]
    with pytest.raises(infra_check.InfraError, match=r"the model takes \d+ MiB .* of at most 200"):
        infra_check.check_serving(contract_base / "3", images, ["a"], max_memory_mib=200)


def test_model_that_takes_too_long_is_refused(contract_base, scene_records, checked):
    model = contract_base / "3"
    images = [scene_records[0].image]
    with pytest.raises(infra_check.InfraError, match=r"one image takes .* ms .* of at most 0\.1"):
        infra_check.check_serving(model, images, ["a"], max_latency_ms=0.1)
    assert 0 < checked.figures["text_latency_ms"] < 60_000
    assert 0 < checked.figures["image_latency_ms"] < 60_000


def test_model_that_does_not_follow_the_contract_is_refused(tmp_path, scene_records):
    module = tf.Module()
    spec = [tf.TensorSpec((None,), tf.string, name="text")]
    module.embed_text = tf.function(
        lambda text: {"embedding": tf.zeros((tf.size(text), 4))},
        input_signature=spec,
        autograph=False,
    )
    tf.saved_model.save(module, str(tmp_path / "m"), {"embed_text": module.embed_text})
    with pytest.raises(
        infra_check.InfraError, match="lacks the signature embed_image, embed_image_safe"
    ):
        infra_check.check_serving(tmp_path / "m", [scene_records[0].image], ["a"])


def test_server_ends_with_the_process_that_started_it(contract_base):
    code = (
        "import os, sys; from sigline.serving.checks import infra_check\n"
        "with infra_check.running_server(sys.argv[1]) as address:\n"
        "    print(address, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(contract_base)], capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL
    host, port = done.stdout.split()[-1].split(":")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))):
                return
        time.sleep(0.2)
    pytest.fail("the server outlived the process that started it")
