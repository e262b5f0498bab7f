import signal
import socket
import subprocess
import sys
import time

import pytest
import tensorflow as tf

from sigline.serving import infra_check
from sigline.trainer import config, export, two_tower

pytestmark = pytest.mark.slow


def test_good_model_is_served_and_asked(tmp_path, vocabulary, scene_records):
    tiny = config.tiny(config.load_recipe("siglip_demo"))
    export.export(tmp_path / "m", two_tower.build(tiny), config=tiny, vocabulary=vocabulary)
    images = [item.image for item in scene_records[:4]]
    report = infra_check.check_serving(tmp_path / "m", images, ["a", "b"])
    assert report["signatures_run"] == 5
    assert report["requests"] == 24
    assert report["median_latency_ms"] > 0


def test_model_that_does_not_follow_the_contract_is_refused(tmp_path, scene_records):
    module = tf.Module()
    spec = [tf.TensorSpec((None,), tf.string, name="text")]
    module.embed_text = tf.function(
        lambda text: {"embedding": tf.zeros((tf.size(text), 4))}, input_signature=spec
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
