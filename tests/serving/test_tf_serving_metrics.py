"""TF Serving's metrics, as its sources have them.

From tensorflow/serving at 9d981c5c: `prediction_service_impl.cc` calls `RecordRequestLatency` with
api "Predict" (Classify, Regress) and entrypoint "GRPC" if the status is OK, and
`RecordModelRequestCount` always; `http_server.cc` calls them with the method of the path, which is
empty for a GET, and "REST". `predict_util.cc` has runtime "TF1". The text is that of
`prometheus_exporter.cc`.
"""

import grpc
import held_servers
import numpy as np
import prometheus_client.parser
import pytest
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from sigline.serving.protocol import tensors
from sigline.serving.server.tf_serving_metrics import TfServingMetrics

# 10 * 1.8^k as `absl::StrCat` prints doubles: six digits.
LIMITS = [
    "10",
    "18",
    "32.4",
    "58.32",
    "104.976",
    "188.957",
    "340.122",
    "612.22",
    "1102",
    "1983.59",
    "3570.47",
    "6426.84",
    "11568.3",
    "20823",
    "37481.3",
    "67466.4",
    "121440",
    "218591",
    "393464",
    "708235",
    "1.27482e+06",
    "2.29468e+06",
    "4.13043e+06",
    "7.43477e+06",
    "1.33826e+07",
    "2.40887e+07",
    "4.33596e+07",
    "7.80473e+07",
    "1.40485e+08",
    "2.52873e+08",
    "4.55172e+08",
    "8.19309e+08",
    "1.47476e+09",
    "+Inf",
]


def _samples(text):
    """Returns values by name and labels, as Prometheus reads them."""
    return {
        (x.name, *sorted(x.labels.items())): x.value
        for family in prometheus_client.parser.text_string_to_metric_families(text)
        for x in family.samples
    }


def _requests(text):
    """Returns the lines of counts and latencies, without their buckets and sums."""
    names = ("request_count{", "request_latency_count{", "runtime_latency_count{")
    lines = [line.removeprefix(":tensorflow:serving:") for line in text.splitlines()]
    return [line for line in lines if line.startswith(names)]


@pytest.mark.parametrize(
    ("api", "entrypoint", "code", "expected"),
    [
        (
            "Predict",
            "GRPC",
            "OK",
            [
                'request_count{model_name="m",status="OK"} 1',
                'request_latency_count{model_name="m",API="Predict",entrypoint="GRPC"} 1',
            ],
        ),
        (
            "predict",
            "REST",
            "OK",
            [
                'request_count{model_name="m",status="OK"} 1',
                'request_latency_count{model_name="m",API="predict",entrypoint="REST"} 1',
            ],
        ),
        (
            "status",
            "REST",
            "OK",
            [
                'request_count{model_name="m",status="OK"} 1',
                'request_latency_count{model_name="m",API="",entrypoint="REST"} 1',
            ],
        ),
        ("Predict", "GRPC", "CANCELLED", ['request_count{model_name="m",status="CANCELLED"} 1']),
        ("predict", "REST", "NOT_FOUND", ['request_count{model_name="m",status="NOT_FOUND"} 1']),
        ("GetModelStatus", "GRPC", "OK", []),
        ("GetModelMetadata", "GRPC", "OK", []),
        ("HandleReloadConfigRequest", "GRPC", "OK", []),
    ],
)
def test_requests_are_counted_by_tf_servings_labels(api, entrypoint, code, expected):
    metrics = TfServingMetrics()
    metrics.request("m", api=api, entrypoint=entrypoint, code=code, seconds=0.1)
    assert _requests(metrics.text()) == expected


def test_distribution_has_tf_servings_buckets_in_microseconds():
    metrics = TfServingMetrics()
    for seconds in (1e-6, 10e-6, 0.1, 1e6):
        metrics.request("m", api="Predict", entrypoint="GRPC", code="OK", seconds=seconds)
    prefix = ':tensorflow:serving:request_latency_bucket{model_name="m",API="Predict",'
    buckets = [x for x in metrics.text().splitlines() if x.startswith(prefix)]
    counts = [1, *[2] * 15, *[3] * 17, 4]
    assert buckets == [
        f'{prefix}entrypoint="GRPC",le="{limit}"}} {count}'
        for limit, count in zip(LIMITS, counts, strict=True)
    ]


def test_text_is_what_prometheus_reads():
    metrics = TfServingMetrics()
    metrics.request('a "b"\\\n', api="Predict", entrypoint="GRPC", code="OK", seconds=0.5)
    metrics.run("m", 0.25)
    metrics.warmup("/models/m/1", 7, 2.0)
    text = metrics.text()
    samples = _samples(text)
    name = ":tensorflow:serving:"
    latency = ("API", "Predict"), ("entrypoint", "GRPC"), ("model_name", 'a "b"\\\n')
    assert samples[f"{name}request_latency_sum", *latency] == 500_000
    run = ("API", "Predict"), ("model_name", "m"), ("runtime", "TF1")
    assert samples[f"{name}runtime_latency_sum", *run] == 250_000
    path = ("model_path", "/models/m/1"), ("status", "OK")
    assert f'{name}model_warmup_records_read{{model_path="/models/m/1",status="OK"}} 7\n' in text
    assert samples[f"{name}model_warmup_latency_sum", *path] == 2_000_000
    kinds = dict(line.split()[2:] for line in text.splitlines() if line.startswith("# TYPE"))
    assert kinds == {
        f"{name}request_count": "counter",
        f"{name}request_latency": "histogram",
        f"{name}runtime_latency": "histogram",
        f"{name}model_warmup_latency": "histogram",
        f"{name}model_warmup_records_read": "counter",
    }


def test_front_ends_call_their_requests_by_tf_servings_names():
    import http.client

    with held_servers.HeldServer() as server, grpc.insecure_channel(server.address) as channel:
        server.go_on.set()
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "m"
        tensors.fill(request.inputs["text"], np.array(["1"]))
        stub.Predict(request)
        metadata = get_model_metadata_pb2.GetModelMetadataRequest()
        metadata.model_spec.name = "m"
        with pytest.raises(grpc.RpcError, match="signature_def"):
            stub.GetModelMetadata(metadata)
        connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=60)
        for verb in ("predict", "PREDICT", "classify", "regress"):
            connection.request("POST", f"/v1/models/m:{verb}", b'{"instances": ["1"]}')
            connection.getresponse().read()
        connection.close()
        server.wait_until(lambda: len(server.codes) == 6)
        text = server.metrics.text().decode()
    assert _requests(text) == [
        'request_count{model_name="m",status="INVALID_ARGUMENT"} 2',
        'request_count{model_name="m",status="OK"} 3',
        'request_latency_count{model_name="m",API="Predict",entrypoint="GRPC"} 1',
        'request_latency_count{model_name="m",API="predict",entrypoint="REST"} 2',
        'runtime_latency_count{model_name="m",API="Predict",runtime="TF1"} 3',
    ]
