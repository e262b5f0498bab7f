import subprocess
import sys

import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from sigline.serving.server import model_config
from sigline.serving.server.model_config import ModelConfig, VersionPolicy

# As in TF Serving's documentation of its configuration.
TEXT = """
model_config_list {
  config {
    name: 'first'
    base_path: '/models/first'
    model_platform: 'tensorflow'
    model_version_policy { specific { versions: 42 versions: 43 } }
    version_labels { key: 'stable' value: 42 }
    version_labels { key: 'canary' value: 43 }
  }
  config { name: 'second' base_path: '/models/second' }
  config { name: 'third' base_path: '/m' model_version_policy { all {} } }
  config { name: 'fourth' base_path: '/m' model_version_policy { latest { num_versions: 2 } } }
}
"""
MODELS = (
    ModelConfig(
        "first", "/models/first", VersionPolicy(None, (42, 43)), {"stable": 42, "canary": 43}
    ),
    ModelConfig("second", "/models/second"),
    ModelConfig("third", "/m", VersionPolicy(None)),
    ModelConfig("fourth", "/m", VersionPolicy(2)),
)


def test_file_of_tf_serving_is_read(tmp_path):
    (tmp_path / "models.config").write_text(TEXT)
    assert model_config.load(tmp_path / "models.config") == MODELS


def test_what_is_written_is_what_was_read(tmp_path):
    (tmp_path / "models.config").write_text(model_config.to_text(MODELS))
    assert model_config.load(tmp_path / "models.config") == MODELS
    parsed = text_format.Parse(
        model_config.to_text(MODELS), model_server_config_pb2.ModelServerConfig()
    )
    assert parsed.model_config_list.config[0].version_labels["canary"] == 43


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (VersionPolicy(), [9]),
        (VersionPolicy(2), [3, 9]),
        (VersionPolicy(None), [1, 3, 9]),
        (VersionPolicy(None, (3, 1)), [1, 3]),
        (VersionPolicy(None, (7,)), [7]),
    ],
)
def test_versions_by_policy(policy, expected):
    assert policy.select([9, 1, 3]) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "must be a model config of TF Serving"),
        ("", "must have a model_config_list"),
        (
            "model_config_list { config { name: 'a' base_path: '/a' model_platform: 'x' } }",
            "model_platform must be",
        ),
        ("model_config_list { config { base_path: '/a' } }", "must have a name and a base_path"),
        (
            "model_config_list { config { name: 'a' base_path: '/a' } "
            "config { name: 'a' base_path: '/b' } }",
            "different names. Received: a, a",
        ),
        (
            "model_config_list { config { name: 'a' base_path: '/a' "
            "version_labels { key: 'a-b' value: 1 } } }",
            "letters, digits and underscores. Received: 'a-b'",
        ),
        (
            "model_config_list { config { name: 'a' base_path: '/a' "
            "model_version_policy { specific {} } } }",
            "must name a version",
        ),
    ],
)
def test_wrong_file_is_refused(tmp_path, text, message):
    (tmp_path / "models.config").write_text(text)
    with pytest.raises(ValueError, match=message):
        model_config.load(tmp_path / "models.config")


def test_no_models_are_a_config_too(tmp_path):
    (tmp_path / "models.config").write_text("model_config_list {}")
    assert model_config.load(tmp_path / "models.config") == ()


_LABELER = """
import sys
from sigline.serving.server import model_config
for version in range(1, 26):
    model = model_config.ModelConfig(sys.argv[2], "/models", labels={"stable": version})
    model_config.replace(sys.argv[1], model)
"""


def test_eight_that_label_at_once_lose_nothing_and_show_no_half_of_it(tmp_path):
    path = tmp_path / "models.config"
    path.write_text(model_config.to_text([model_config.ModelConfig("first", "/models")]))
    names = [f"model-{number}" for number in range(8)]
    processes = [
        subprocess.Popen([sys.executable, "-c", _LABELER, str(path), name]) for name in names
    ]
    seen = 0
    while any(process.poll() is None for process in processes):
        count = len(model_config.load(path))
        assert count >= max(seen, 1)
        seen = count
    assert [process.returncode for process in processes] == [0] * 8
    labels = {item.name: dict(item.labels) for item in model_config.load(path)}
    assert labels == {"first": {}} | {name: {"stable": 25} for name in names}
    assert [item.name for item in tmp_path.iterdir() if item.name.startswith(".tmp-")] == []
