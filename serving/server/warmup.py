"""Replays the warm-up requests of a model before it serves, as TF Serving does."""

from pathlib import Path

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from sigline.schemas import signatures
from sigline.serving.protocol import tensors
from sigline.serving.server.engine import LoadedVersion
from sigline.serving.server.failures import RequestFailed

# TF Serving's limit.
_MAX_RECORDS = 1000


def replay(engine: LoadedVersion, directory: str | Path) -> int:
    """Runs the Predict requests in a model's `assets.extra`; returns their number.

    Raises:
        ValueError: If one cannot be read or fails: requests of clients would then fail too.
    """
    path = Path(directory) / signatures.ASSETS_DIR / signatures.WARMUP_FILE
    if not path.is_file():
        return 0
    count = 0
    try:
        for record in tf.compat.v1.io.tf_record_iterator(str(path)):
            if count == _MAX_RECORDS:
                raise ValueError(f"there may be at most {_MAX_RECORDS}; remove the others")
            log = prediction_log_pb2.PredictionLog.FromString(record)
            kind = log.WhichOneof("log_type")
            if kind != "predict_log":
                raise ValueError(f"only Predict requests are replayed. Received: {kind}")
            request = log.predict_log.request
            signature = request.model_spec.signature_name or signatures.SERVING_DEFAULT
            inputs = tensors.to_arrays(request.inputs)
            engine.check(signature, inputs)
            engine.run(signature, inputs)
            count += 1
    except (ValueError, DecodeError, RequestFailed, tf.errors.OpError) as error:
        raise ValueError(f"Warm-up request {count} of {path} fails: {error}") from error
    return count
