"""The contract against a real TF Serving, wherever there is one; sigline's own answers the same."""

import os
import shutil
import socket
import subprocess
import time

import numpy as np
import pytest

from sigline.serving.client import Client
from sigline.serving.client.transport import RequestError

ADDRESS_VARIABLE, BINARY = "TF_SERVING_ADDRESS", "tensorflow_model_server"


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def stock(contract_base):
    """The address of a TF Serving with the tiny model as version 3 of `sigline`."""
    address = os.environ.get(ADDRESS_VARIABLE)
    if address:
        yield address
        return
    if shutil.which(BINARY) is None:
        pytest.skip(f"${ADDRESS_VARIABLE} is not set, and no {BINARY} is on the PATH")
    port = _free_port()
    command = [BINARY, f"--port={port}", "--model_name=sigline"]
    process = subprocess.Popen([*command, f"--model_base_path={contract_base}"])
    deadline = time.monotonic() + 120
    client = Client(f"127.0.0.1:{port}", timeout_seconds=5, retries=0)
    while time.monotonic() < deadline:
        try:
            client.embed_texts(["a"])
            break
        except RequestError:
            time.sleep(0.5)
    yield f"127.0.0.1:{port}"
    process.terminate()
    process.wait(60)


@pytest.fixture(params=["sigline", "tf serving"])
def client(request):
    if request.param == "sigline":
        return Client(request.getfixturevalue("server").address)
    return Client(request.getfixturevalue("stock"))


@pytest.fixture(scope="module")
def images(scene_records):
    return [item.image for item in scene_records[:3]]


def test_embeddings_are_of_unit_length_and_bad_images_are_told(client, images):
    vectors, valid = client.embed_images([*images, b"bad"])
    assert valid.tolist() == [True, True, True, False]
    np.testing.assert_allclose(np.linalg.norm(vectors[:3], axis=1), 1.0, atol=1e-3)
    texts = client.embed_texts(["a red ring", "a blue star"])
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1.0, atol=1e-3)
    assert client.compare(images[0], ["a", "b"]).shape == (2,)


@pytest.mark.parametrize(
    ("options", "signature", "inputs", "code", "message"),
    [
        ({"model_name": "x"}, "embed_text", {"text": ["a"]}, "NOT_FOUND", r"Latest\(x\)"),
        ({"version": 7}, "embed_text", {"text": ["a"]}, "NOT_FOUND", r"Specific\(sigline, 7\)"),
        ({"label": "x"}, "embed_text", {"text": ["a"]}, "INVALID_ARGUMENT", "version label: x"),
        ({}, "x", {"text": ["a"]}, "FAILED_PRECONDITION", 'signature key "x" not found'),
        ({}, "embed_text", {}, "INVALID_ARGUMENT", "input size does not match signature: 0!=1"),
        ({}, "embed_text", {"x": ["a"]}, "INVALID_ARGUMENT", "Sent extra: {x}|x"),
        ({}, "embed_image", {"image_bytes": [b"x"]}, "INVALID_ARGUMENT", "only JPEG and PNG"),
    ],
)
def test_wrong_requests_get_the_same_status(client, options, signature, inputs, code, message):
    asking = Client(client._target, retries=0, **options)
    with pytest.raises(RequestError, match=message) as caught:
        asking.predict(signature, inputs)
    assert caught.value.code == code


def test_both_servers_embed_alike(server, stock, images):
    own, other = Client(server.address), Client(stock)
    np.testing.assert_allclose(
        own.embed_images(images)[0], other.embed_images(images)[0], atol=1e-5
    )
    np.testing.assert_allclose(own.embed_texts(["a"]), other.embed_texts(["a"]), atol=1e-5)
