import base64
import json
import math
import urllib.error
import urllib.request

import numpy as np
import pytest
import small_servers
import tensorflow as tf

from sigline.components.scenes import grammar
from sigline.schemas import signatures


def _call(server, path, body=None, headers=None):
    """Returns the status and the JSON of an answer."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.rest_port}{path}", data, headers or {}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def _predict(server, **body):
    return _call(server, "/v1/models/sigline:predict", body)


def _b64(image):
    return {"b64": base64.b64encode(image).decode()}


@pytest.fixture(scope="module")
def images(scene_records):
    return [item.image for item in scene_records[:2]]


@pytest.fixture(scope="module")
def direct(contract_base):
    return tf.saved_model.load(str(contract_base / "3"))


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    base = tmp_path_factory.mktemp("rest") / "versions"
    small_servers.write_version(base, 1)
    with small_servers.running(base) as found:
        yield found


def test_rows_of_texts(server, direct):
    texts = ["a red ring", "a blue star"]
    status, answer = _predict(server, signature_name="embed_text", instances=texts)
    expected = direct.signatures["embed_text"](text=tf.constant(texts))["embedding"]
    assert status == 200
    np.testing.assert_allclose(answer["predictions"], expected, atol=1e-6)


def test_rows_of_images_by_name_and_without(server, direct, images):
    expected = direct.signatures["embed_image"](image_bytes=tf.constant(images))["embedding"]
    for rows in ([_b64(x) for x in images], [{"image_bytes": _b64(x)} for x in images]):
        status, answer = _predict(server, instances=rows)
        assert status == 200
        np.testing.assert_allclose(answer["predictions"], expected, atol=1e-6)


def test_several_outputs_are_objects(server, images):
    rows = [_b64(images[0]), _b64(b"bad")]
    status, answer = _predict(server, signature_name="embed_image_safe", instances=rows)
    assert status == 200
    assert [row["valid"] for row in answer["predictions"]] == [True, False]
    assert answer["predictions"][1]["embedding"][:2] == [0.0, 0.0]


def test_columns_may_differ_in_length(server, images):
    columns = {"image_bytes": [_b64(x) for x in images], "text": ["a", "b", "c"]}
    status, answer = _predict(server, signature_name="similarity", inputs=columns)
    assert status == 200
    assert np.shape(answer["outputs"]["probabilities"]) == (2, 3)


def test_columns_of_one_input_need_no_name(server):
    status, answer = _predict(server, signature_name="embed_text", inputs=["a"])
    assert status == 200
    assert np.shape(answer["outputs"]) == (1, 32)


def test_strings_come_as_texts_and_bytes_in_base64(server, numbers, images):
    status, answer = _predict(server, signature_name="classify", instances=[_b64(images[0])])
    assert status == 200
    assert answer["predictions"][0]["classes"][0] in grammar.label_set().names
    status, answer = _predict(numbers, signature_name="double", instances=[[1.5, 2], [3, 4]])
    assert status == 200
    first = answer["predictions"][0]
    assert first["doubled"] == [3.0, 4.0]
    assert base64.b64decode(first["label_bytes"]["b64"]) == b"1.500000"


def test_numbers_that_json_does_not_know_go_both_ways(numbers):
    body = b'{"signature_name": "double", "instances": [[NaN, Infinity]]}'
    status, answer = _call(numbers, "/v1/models/sigline:predict", body)
    assert status == 200
    assert math.isnan(answer["predictions"][0]["doubled"][0])
    assert answer["predictions"][0]["doubled"][1] == math.inf


def test_versions_are_asked_by_number(server):
    body = {"signature_name": "embed_text", "instances": ["a"]}
    assert _call(server, "/v1/models/sigline/versions/3:predict", body)[0] == 200
    status, answer = _call(server, "/v1/models/sigline/versions/4:predict", body)
    assert (status, answer) == (
        404,
        {"error": "Servable not found for request: Specific(sigline, 4)"},
    )
    status, answer = _call(server, "/v1/models/sigline/labels/x:predict", body)
    assert (status, answer) == (400, {"error": "Unrecognized servable version label: x"})


def test_status_and_metadata(server):
    expected = {
        "version": "3",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    url = f"http://127.0.0.1:{server.rest_port}/v1/models/sigline"
    with urllib.request.urlopen(url) as answer:
        assert answer.read().startswith(b'{\n "model_version_status": [\n  {\n   "version": "3"')
    for path in ("/v1/models/sigline", "/v1/models/sigline/versions/3"):
        assert _call(server, path) == (200, {"model_version_status": [expected]})
    assert _call(server, "/v1/models/other")[0] == 404
    status, answer = _call(server, "/v1/models/sigline/metadata")
    assert status == 200
    assert answer["model_spec"] == {"name": "sigline", "signature_name": "", "version": "3"}
    found = answer["metadata"]["signature_def"]["signature_def"]
    assert found["embed_text"]["inputs"]["text"]["dtype"] == "DT_STRING"


def test_metadata_is_printed_as_tf_serving_prints_it(numbers):
    # `ToJsonString` in its `http_rest_api_util.cc`; the example in its documentation
    # (`api_rest.md`) has the same form.
    url = f"http://127.0.0.1:{numbers.rest_port}/v1/models/sigline/versions/1/metadata"
    with urllib.request.urlopen(url) as answer:
        text = answer.read().decode()
    head = '{\n"model_spec":{\n "name": "sigline",\n'
    assert text.startswith(head)
    assert '},\n"metadata": {"signature_def": {\n "signature_def": {\n  "' in text
    assert text.endswith("}\n}}\n}\n")
    found = json.loads(text)["metadata"]["signature_def"]["signature_def"]
    assert set(found) == {"__saved_model_init_op", "double", "embed_text", "serving_default"}
    assert found["__saved_model_init_op"]["method_name"] == ""
    double = found["double"]
    assert set(double) == {"inputs", "outputs", "method_name", "defaults"}
    assert (double["method_name"], double["defaults"]) == ("tensorflow/serving/predict", {})
    assert double["inputs"]["numbers"] == {
        "dtype": "DT_FLOAT",
        "tensor_shape": {
            "dim": [{"size": "-1", "name": ""}, {"size": "2", "name": ""}],
            "unknown_rank": False,
        },
        "name": double["inputs"]["numbers"]["name"],
    }


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"nonsense", "JSON Parse error"),
        (b"\xff", "JSON Parse error"),
        (b"[" * 50_000, "nested too deeply"),
        (b"[]", "must be a JSON object"),
        ({}, 'either "instances" or "inputs"'),
        ({"instances": ["a"], "inputs": ["a"]}, 'either "instances" or "inputs"'),
        ({"instances": []}, "must be a list that is not empty"),
        ({"instances": "a"}, "must be a list that is not empty"),
        ({"instances": ["a"], "signature_name": 3}, "signature_name must be a string"),
        ({"instances": ["a"], "signature_name": "x"}, 'signature key "x" not found'),
        ({"instances": [{"b64": "?"}]}, "must hold base64"),
        ({"instances": [{"b64": 3}]}, "must hold strings"),
        ({"instances": [3]}, "must hold strings"),
        ({"instances": [["a"]]}, "must be a list of strings"),
        ({"instances": [None]}, "must hold strings"),
        ({"instances": [{"x": "a"}]}, "Missing but required: {image_bytes}"),
        ({"instances": [{"x": "a"}, "b"]}, "every instance must have the same names"),
        ({"instances": ["b", {"x": "a"}]}, "must all be objects, or none"),
        ({"instances": [_b64(b"x")]}, "only JPEG and PNG"),
        ({"instances": ["a"] * 1025}, "may have 1024 items. Received: 1025"),
        ({"inputs": "a"}, "must have shape"),
        ({"inputs": ["a"], "signature_name": "similarity"}, "must be named: image_bytes, text"),
        (
            {"inputs": {"text": ["x" * 70_000]}, "signature_name": "embed_text"},
            "65536 bytes a text. Received: 70000",
        ),
    ],
)
def test_wrong_request_is_one_clear_error(server, body, message):
    status, answer = _call(server, "/v1/models/sigline:predict", body)
    assert status == 400
    assert list(answer) == ["error"]
    assert message in answer["error"]
    assert "\n" not in answer["error"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["a", "b"]], "must hold numbers"),
        ([[1, 2], [3]], "regular shape"),
        ([[1, 2, 3]], "must have shape"),
        ([[10**400, 1]], "values must fit into float32"),
        ([["x" * 10_000, *["y"] * 1000]], "must hold numbers"),
    ],
)
def test_wrong_numbers_are_one_clear_error(numbers, rows, message):
    status, answer = _predict(numbers, signature_name="double", instances=rows)
    assert status == 400
    assert message in answer["error"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/models/sigline:classify", {"examples": []}, 400),
        ("/v1/models/sigline:regress", {"examples": []}, 400),
        ("/v1/models/sigline:other", {}, 404),
        ("/v1/models/sigline:predict", None, 405),
        ("/v1/models/sigline/versions/99999999999999999999:predict", {}, 404),
        ("/nothing", None, 404),
    ],
)
def test_other_paths_have_a_status_and_json(server, path, body, status):
    found, answer = _call(server, path, body)
    assert found == status
    assert answer["error"]


def test_body_over_the_limit_is_refused(server):
    status, answer = _call(server, "/v1/models/sigline:predict", b" " * (17 * 2**20))
    assert (status, answer) == (
        413,
        {"error": "The body may have 16777216 bytes; send several requests"},
    )


def test_too_many_requests_at_a_time_are_refused(versions_base):
    from sigline.serving.server.requests import Limits

    with small_servers.running(versions_base, limits=Limits(max_requests=1)) as server:
        with server._requests.admitted():
            status, answer = _predict(server, instances=["1"])
        assert (status, answer["error"]) == (
            429,
            "More than 1 requests at a time; send it again later",
        )
        assert _predict(server, instances=["1"])[0] == 200


def test_body_that_never_comes_costs_its_place_for_no_longer_than_allowed(versions_base):
    import socket

    from sigline.serving.server.requests import Limits

    limits = Limits(max_requests=1, timeout_seconds=0.5)
    with small_servers.running(versions_base, limits=limits) as server:
        address = ("127.0.0.1", server.rest_port)
        with socket.create_connection(address, timeout=60) as slow:
            head = b"POST /v1/models/sigline:predict HTTP/1.1\r\nHost: x\r\n"
            slow.sendall(head + b"Content-Length: 9\r\n\r\n")
            assert b" 504 " in slow.recv(100)
        assert _predict(server, instances=["1"])[0] == 200


def test_probes_answer(server):
    for path in ("/healthz", "/readyz"):
        with urllib.request.urlopen(f"http://127.0.0.1:{server.rest_port}{path}") as answer:
            assert answer.read() == b"ok\n"


def test_figures_have_tf_servings_names(versions_base):
    with small_servers.running(versions_base) as server:
        for _ in range(3):
            assert _predict(server, instances=["1"])[0] == 200
        assert _predict(server, instances=["x"])[0] == 400
        assert _call(server, "/v1/models/sigline")[0] == 200
        assert _call(server, "/v1/models/other:predict", {"instances": ["x"]})[0] == 404
        url = f"http://127.0.0.1:{server.rest_port}/monitoring/prometheus/metrics"
        with urllib.request.urlopen(url) as answer:
            lines = answer.read().decode().splitlines()
    count = ':tensorflow:serving:request_count{model_name="sigline",status='
    assert f'{count}"OK"}} 4' in lines
    assert f'{count}"INVALID_ARGUMENT"}} 1' in lines
    # Latencies of requests that are answered alone.
    labels = '{model_name="sigline",API="predict",entrypoint="REST"}'
    assert f":tensorflow:serving:request_latency_count{labels} 3" in lines
    # Names that no model has are one.
    assert any('model_name="unknown"' in line for line in lines)
    assert not any('model_name="other"' in line for line in lines)
    assert 'sigline_version_state{model_name="sigline",version="1"} 30.0' in lines
    assert 'sigline_version_overwritten{model_name="sigline",version="1"} 0.0' in lines
    assert any(line.startswith("sigline_batch_rows_bucket") for line in lines)
    assert signatures.SERVING_DEFAULT in "".join(lines)


@pytest.mark.parametrize(
    "breaks", [lambda x: x, lambda x: x.rstrip("="), lambda x: x + "\n", "\n", "\r\n"]
)
def test_base64_with_line_breaks_or_without_padding_is_read(server, images, breaks):
    text = base64.b64encode(images[0]).decode()
    if isinstance(breaks, str):
        text = breaks.join(text[i : i + 76] for i in range(0, len(text), 76)) + breaks
    else:
        text = breaks(text)
    status, answer = _predict(server, instances=[{"b64": text}, _b64(images[0])])
    assert status == 200
    assert answer["predictions"][0] == answer["predictions"][1]


def _asked(server, method, path, **headers):
    """Returns the status and the headers of an answer."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=60)
    connection.request(method, path, headers={x.replace("_", "-"): y for x, y in headers.items()})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, answer.headers


def test_pages_of_other_sites_may_not_ask_by_default(server):
    for method in ("GET", "OPTIONS"):
        status, headers = _asked(server, method, "/v1/models/sigline", Origin="https://a.org")
        # Not answered either: a page that may not read an answer may still have caused it.
        assert status == 403
        assert "Access-Control-Allow-Origin" not in headers


def test_pages_of_allowed_sites_may_ask_and_browsers_are_told_before_a_key(versions_base):
    options = {"allow_origins": ("https://a.org", "http://b.org:8080"), "api_keys": ("k" * 20,)}
    path = "/v1/models/sigline:predict"
    with small_servers.running(versions_base, **options) as server:
        status, headers = _asked(server, "OPTIONS", path, Origin="https://a.org")
        assert status == 200
        assert headers["Access-Control-Allow-Origin"] == "https://a.org"
        assert headers["Access-Control-Allow-Methods"] == "POST, GET"
        assert "Content-Type" in headers["Access-Control-Allow-Headers"]
        assert "Authorization" in headers["Access-Control-Allow-Headers"]
        assert headers["Vary"] == "Origin"
        # A page reads why it was refused, too.
        status, headers = _asked(server, "GET", "/v1/models/sigline", Origin="http://b.org:8080")
        assert status == 401
        assert headers["Access-Control-Allow-Origin"] == "http://b.org:8080"
        for other in ("https://a.org.evil.org", "http://a.org", "https://a.org:444", "null"):
            status, headers = _asked(server, "OPTIONS", path, Origin=other)
            assert status == 403
            assert "Access-Control-Allow-Origin" not in headers
        assert _asked(server, "OPTIONS", path)[0] == 400
        _, headers = _asked(server, "GET", "/healthz", Origin="https://a.org")
        assert "Access-Control-Allow-Origin" not in headers


def test_all_pages_may_ask_where_that_is_wanted(versions_base):
    with small_servers.running(versions_base, allow_origins=("*",)) as server:
        for method in ("OPTIONS", "GET"):
            status, headers = _asked(server, method, "/v1/models/sigline", Origin="https://a.org")
            assert (status, headers["Access-Control-Allow-Origin"]) == (200, "*")
        status, headers = _asked(server, "GET", "/v1/models/other", Origin="https://a.org")
        assert (status, headers["Access-Control-Allow-Origin"]) == (404, "*")
