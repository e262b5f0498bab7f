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
from sigline.serving import infra_check, warmup
from sigline.serving.engine import LoadedVersion
from sigline.trainer import config, export, two_tower

pytestmark = pytest.mark.slow


def test_good_model_is_served_and_asked(tmp_path, vocabulary, scene_records):
    tiny = config.tiny(config.load_recipe("siglip_demo"))
    export.export(tmp_path / "m", two_tower.build(tiny), config=tiny, vocabulary=vocabulary)
    images = [item.image for item in scene_records[:4]]
    checked = infra_check.check_serving(tmp_path / "m", images, ["a", "b"])
    assert checked.figures["signatures_run"] == 5
    assert checked.figures["requests"] == 45
    assert checked.figures["median_latency_ms"] > 0
    published = publishing.publish(
        tmp_path / "m", tmp_path / "serving", extras={signatures.WARMUP_FILE: checked.warm_up}
    )
    assert versions.verify(published.path) == published.digest
    # Two sizes of each, as TensorFlow reads them.
    engine = LoadedVersion(published.path, 1)
    assert warmup.replay(engine, published.path) == 10
    path = published.path / "assets.extra" / signatures.WARMUP_FILE
    records = [x.numpy() for x in tf.data.TFRecordDataset(str(path))]
    requests = [prediction_log_pb2.PredictionLog.FromString(x).predict_log.request for x in records]
    assert {x.model_spec.signature_name for x in requests} == set(engine.signature_defs)
    engine.close()


def test_answers_must_be_those_of_the_trainer(tmp_path, vocabulary, scene_records):
    tiny = config.tiny(config.load_recipe("siglip_demo"))
    model = two_tower.build(tiny)
    export.export(tmp_path / "m", model, config=tiny, vocabulary=vocabulary)
    records = scene_records[:3]
    images, texts = [item.image for item in records], [item.text[0] for item in records]
    served = tf.saved_model.load(str(tmp_path / "m")).signatures
    image = served["embed_image"](image_bytes=tf.constant(images))["embedding"].numpy()
    text = served["embed_text"](text=tf.constant(texts))["embedding"].numpy()
    image[1] = np.nan
    golden = infra_check.Golden(image, text, 1e-4)
    infra_check.check_serving(tmp_path / "m", images, texts, golden=golden)
    golden = infra_check.Golden(image, np.roll(text, 1, axis=0), 1e-4)
    with pytest.raises(infra_check.InfraError, match="text embeddings differ from those of the mo"):
        infra_check.check_serving(tmp_path / "m", images, texts, golden=golden)


def test_model_that_takes_too_much_memory_is_refused(contract_base, scene_records):
    images = [scene_records[0].image]
    with pytest.raises(infra_check.InfraError, match=r"the model takes \d+ MiB .* of at most 200"):
        infra_check.check_serving(contract_base / "3", images, ["a"], max_memory_mib=200)


def test_model_that_takes_too_long_is_refused(contract_base, scene_records):
    model = contract_base / "3"
    images = [scene_records[0].image]
    with pytest.raises(infra_check.InfraError, match=r"one image takes .* ms .* of at most 0\.1"):
        infra_check.check_serving(model, images, ["a"], max_latency_ms=0.1)
    found = infra_check.check_serving(model, images, ["a"], max_latency_ms=60_000)
    assert 0 < found.figures["text_latency_ms"] < 60_000
    assert 0 < found.figures["image_latency_ms"] < 60_000


def test_model_that_does_not_follow_the_contract_is_refused(tmp_path, scene_records):
    module = tf.Module()
    spec = [tf.TensorSpec((None,), tf.string, name="text")]
    module.embed_text = tf.function(
        lambda text: {"embedding": tf.zeros((tf.size(text), 4))},
        input_signature=spec,
        autograph=False,
    )
    tf.saved_model.save(module, str(tmp_path / "m"), {"embed_text": module.embed_text})
    with pytest.raises(infra_check.InfraError, match=r'signature key "embed_image" not found'):
        infra_check.check_serving(tmp_path / "m", [scene_records[0].image], ["a"])


def test_server_ends_with_the_process_that_started_it(tmp_path, vocabulary):
    tiny = config.tiny(config.load_recipe("siglip_demo"))
    export.export(tmp_path / "1", two_tower.build(tiny), config=tiny, vocabulary=vocabulary)
    code = (
        "import os, sys; from sigline.serving import infra_check\n"
        "with infra_check.running_server(sys.argv[1]) as address:\n"
        "    print(address, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
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
