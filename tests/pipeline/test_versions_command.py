import os

import pytest

from sigline import cli
from sigline.components.publish import publishing
from sigline.schemas import versions


@pytest.fixture
def base(tmp_path):
    model = tmp_path / "model"
    (model / "assets.extra").mkdir(parents=True)
    (model / "assets.extra" / "sigline.json").write_text(
        '{"model_digest": "0123456789abcdef", "recipe": "siglip_demo"}'
    )
    for content in (b"1", b"2"):
        (model / "saved_model.pb").write_bytes(content)
        publishing.publish(model, tmp_path / "serving")
    return tmp_path / "serving"


def test_versions_are_listed_with_their_state(base, capsys):
    (base / "1" / "saved_model.pb").write_bytes(b"damage")
    os.mkdir(base / "7")
    assert cli.main(["versions", str(base)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["version", "1", "2", "7"]
    assert "DAMAGED" in lines[1]
    assert "intact" in lines[2]
    assert "0123456789ab" in lines[2]
    assert lines[2].endswith("siglip_demo")
    assert "unchecked" in lines[3]


def test_rollback_and_back(base, capsys):
    assert cli.main(["rollback", str(base), "--reason", "worse"]) == 0
    assert capsys.readouterr().out == "Withdrew 2; the newest version is 1\n"
    assert cli.main(["rollback", str(base), "--to", "1"]) == 0
    assert capsys.readouterr().out == "Version 1 is the newest already\n"
    assert cli.main(["versions", str(base)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.split()[0] == "2"
    assert "withdrawn" in last
    assert last.endswith(": worse")
    assert cli.main(["versions", str(base), "--restore", "2"]) == 0
    assert versions.list_versions(base) == [1, 2]


def test_what_cannot_be_done_is_one_sentence(base, tmp_path, capsys):
    assert cli.main(["rollback", str(base), "--to", "9"]) == 2
    assert cli.main(["versions", str(tmp_path / "nothing")]) == 2
    assert cli.main(["label", "x", "--base-path", str(base), "--set", "stable"]) == 2
    assert cli.main(["label", "x", "--base-path", str(base), "--set", "stable=9"]) == 2
    assert cli.main(["label", "x", "--base-path", str(base)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.split(". ")[0] for line in errors] == [
        "sigline: to must be a version that is there",
        "sigline: BASE must be a folder; there is no such folder",
        "sigline: --set must be LABEL=VERSION",
        "sigline: Labels must name versions that are there",
        "sigline: Give either --set LABEL=VERSION or --clear",
    ]


def test_labels_are_written_as_tf_serving_reads_them(base, tmp_path, capsys):
    from sigline.serving.server import model_config

    config = tmp_path / "models.config"
    logged = "logging_config { sampling_config { sampling_rate: 0.5 } }"
    config.write_text(
        f"model_config_list {{ config {{ name: 'other' base_path: '/o' {logged} }} }}"
    )
    arguments = ["label", str(config), "--base-path", str(base)]
    assert cli.main([*arguments, "--set", "stable=1", "--set", "canary=2"]) == 0
    assert capsys.readouterr().out == f"Wrote {config}: canary is 2, stable is 1\n"
    other, model = model_config.load(config)
    assert other.name == "other"
    assert (model.name, model.base_path) == ("sigline", str(base))
    assert model.policy.specific == (1, 2)
    assert model.labels == {"stable": 1, "canary": 2}
    assert cli.main([*arguments, "--clear", "--served-path", "/models/sigline"]) == 0
    assert model_config.load(config)[1] == model_config.ModelConfig("sigline", "/models/sigline")
    assert "sampling_rate: 0.5" in config.read_text()
