import pytest

import sigline
from sigline import cli


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.strip() == sigline.__version__


def test_scenes_are_written(tmp_path, capsys):
    arguments = ["data", "scenes", "--output", str(tmp_path), "--count", "40"]
    assert cli.main([*arguments, "--faults", "corrupt=0.1"]) == 0
    assert "planted faults: 4 corrupt" in capsys.readouterr().out
    assert (tmp_path / "scenes-00000.tar").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "scenes", "--output", "x", "--faults", "typo=1"], "Known names"),
        (["ask", "a"], "--image FILE [TEXT ...]"),
        (["ask", "--images", ".", "a", "b"], "one TEXT"),
        (["ask", "--images", ".", "a", "--top", "0"], "--top must be at least 1"),
        (["run", "--environment", "nothing"], "must be a YAML file"),
        (["serve", "--base-path", "/nonexistent"], "must hold a version directory"),
        (
            ["serve", "--base-path", "x", "--intra-op-parallelism", "-1"],
            "intra_op_parallelism must be 0, for one thread a core, or more. Received: -1",
        ),
    ],
)
def test_mistake_is_one_line_and_exit_code_two(capsys, arguments, message):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("sigline: ")
    assert "Traceback" not in error


def test_train_that_cannot_fit_is_refused_and_leaves_the_folder_free(
    split_dir, vocabulary, tmp_path, monkeypatch, capsys, contract_config
):
    from sigline.trainer import config
    from sigline.trainer.training import memory

    monkeypatch.setattr(config, "load_recipe", lambda name: contract_config)
    monkeypatch.setattr(memory, "_host_bytes", lambda: 1000)
    (tmp_path / "v.model").write_bytes(vocabulary)
    arguments = ["train", "--recipe", "siglip_demo", "--data", str(split_dir)]
    arguments += ["--vocabulary", str(tmp_path / "v.model"), "--output", str(tmp_path / "out")]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert "sigline: The run's state does not fit: it takes 0.0 GiB (parameters" in error
    assert list((tmp_path / "out").iterdir()) == []


def test_train_runs_alone_and_finishes_what_was_begun(
    split_dir, vocabulary, tmp_path, monkeypatch, capsys, contract_config
):
    from sigline.trainer import config

    monkeypatch.setattr(config, "load_recipe", lambda name: contract_config)
    (tmp_path / "v.model").write_bytes(vocabulary)
    arguments = ["train", "--recipe", "siglip_demo", "--data", str(split_dir)]
    arguments += ["--vocabulary", str(tmp_path / "v.model"), "--output", str(tmp_path / "out")]
    assert cli.main([*arguments, "--set", "steps=2"]) == 0
    assert "Exported" in capsys.readouterr().out
    assert (tmp_path / "out" / "model" / "saved_model.pb").is_file()
    assert cli.main([*arguments, "--set", "steps=2"]) == 2
    assert "finished model" in capsys.readouterr().err
