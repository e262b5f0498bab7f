"""No command writes over a file that it did not write."""

import json
import sqlite3

import numpy as np
import pytest

from sigline import cli
from sigline.commands import ask, claims, gate, train, versions
from sigline.pipeline import environment
from sigline.pipeline.kubeflow import packages

MINE = "mine: 1\n"


def _error(capsys, arguments):
    assert cli.main([str(x) for x in arguments]) == 2
    return capsys.readouterr().err


def _environment(tmp_path, **more):
    path = tmp_path / "emoji.yaml"
    values = {"pipeline_name": "emoji", "root": str(tmp_path / "root"), "input_base": "/data"}
    values |= {"recipe": "siglip_small"} | more
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize("option", [None, "emoji.yaml", "notes.yaml"])
def test_compiling_leaves_the_environment_and_other_files_as_they_are(
    tmp_path, capsys, monkeypatch, option
):
    monkeypatch.chdir(tmp_path)
    path = _environment(tmp_path, kubeflow={"image": "a/b:1"})
    (tmp_path / "notes.yaml").write_text(MINE)
    before = path.read_text()
    arguments = ["kubeflow", "compile", "--environment", path]
    error = _error(capsys, arguments + (["--output", option] if option else []))
    assert f"{option or 'emoji.yaml'} is in the way" in error
    assert "another place with --output" in error
    assert (path.read_text(), (tmp_path / "notes.yaml").read_text()) == (before, MINE)


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_package_is_written_again_until_someone_changes_it(tmp_path, suffix):
    spec = {"deploymentSpec": {}, "root": {}}
    path = tmp_path / f"package.{suffix}"
    job = {"displayName": "x", "pipelineSpec": spec}
    text = packages.marked_json(job) if suffix == "json" else packages.marked_yaml(json.dumps(spec))
    path.write_text(text)
    packages.check_output(path)
    assert packages.read(path).spec == spec
    path.write_text(text.replace('"root": {}', '"root": {"mine": 1}'))
    with pytest.raises(ValueError, match="is in the way: sigline kubeflow compile did not"):
        packages.check_output(path)


@pytest.mark.parametrize("text", ['{"labels": {}}', "[]", "", '{"a": 1}'])
def test_other_json_files_are_no_packages(tmp_path, text):
    path = tmp_path / "emoji.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="is in the way"):
        packages.check_output(path)


def test_embeddings_are_written_again_but_not_over_other_archives(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, embedding=np.zeros(3))
    with pytest.raises(ValueError, match=r"x\.npz is in the way: sigline embed did not write it"):
        ask._check_output(path)
    ask._mark(path)
    ask._check_output(path)
    assert np.load(path)["embedding"].shape == (3,)


def test_embedding_refuses_a_file_of_someone_else_before_it_asks_a_server(tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("a\n")
    np.savez(tmp_path / "x.npz", mine=np.ones(2))
    before = (tmp_path / "x.npz").read_bytes()
    arguments = ["embed", "--texts", tmp_path / "texts.txt", "--output", tmp_path / "x.npz"]
    assert "x.npz is in the way" in _error(capsys, [*arguments, "--target", "127.0.0.1:1"])
    assert (tmp_path / "x.npz").read_bytes() == before


@pytest.mark.parametrize("name", ["junit.xml", "summary.md", "metrics.json", "report.html"])
def test_the_gate_leaves_reports_of_other_tools_as_they_are(tmp_path, name):
    (tmp_path / name).write_text(MINE)
    with pytest.raises(ValueError, match=f"{name} is in the way"), gate._output(tmp_path):
        pass
    assert (tmp_path / name).read_text() == MINE


@pytest.mark.parametrize("name", ["scenes-00000.tar", "scenes-00042.tar", "classes.json"])
def test_scenes_leave_other_shards_as_they_are(tmp_path, capsys, name):
    (tmp_path / name).write_text(MINE)
    arguments = ["data", "scenes", "--output", tmp_path, "--count", "20"]
    assert f"{name} is in the way" in _error(capsys, arguments)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == MINE


def test_scenes_of_an_earlier_call_are_replaced(tmp_path):
    arguments = ["data", "scenes", "--output", str(tmp_path), "--count"]
    assert cli.main([*arguments, "1200"]) == 0
    (tmp_path / "mine.txt").write_text(MINE)
    assert cli.main([*arguments, "20"]) == 0
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == [
        "scenes-00000.tar",
        "scenes-heldout-00000.tar",
    ]
    assert (tmp_path / "mine.txt").read_text() == MINE


@pytest.mark.parametrize("name", ["checkpoints", "logs", "model", "weights"])
def test_training_leaves_folders_of_someone_else_as_they_are(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine.txt").write_text(MINE)
    with pytest.raises(ValueError, match=f"{name} is in the way: no run of sigline wrote it"):
        claims.check(tmp_path, written=train._TRAINED)
    claims.claim(tmp_path, ["a run"])
    claims.check(tmp_path, written=train._TRAINED)


def test_training_may_begin_beside_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text(MINE)
    claims.check(tmp_path, written=train._TRAINED)
    with pytest.raises(ValueError, match=r"notes\.txt is in the way"):
        claims.check(tmp_path, ignored=("tower",))


def test_a_run_leaves_a_database_of_someone_else_as_it_is(tmp_path, capsys):
    (tmp_path / "root").mkdir()
    store = tmp_path / "root" / "metadata.sqlite"
    with sqlite3.connect(store) as database:
        database.execute("CREATE TABLE mine (x)")
    before = store.read_bytes()
    error = _error(capsys, ["run", "--environment", _environment(tmp_path)])
    assert "metadata.sqlite is in the way" in error
    assert "another place with `root`" in error
    assert store.read_bytes() == before


def test_a_run_goes_on_with_a_database_of_its_own(tmp_path):
    (tmp_path / "root").mkdir()
    with sqlite3.connect(tmp_path / "root" / "metadata.sqlite") as database:
        database.execute("CREATE TABLE MLMDEnv (schema_version)")
    environment.check_root(environment.load(_environment(tmp_path)))


@pytest.mark.parametrize("text", ["# mine\n", "model_config_list {} # mine\n"])
def test_labels_do_not_drop_comments_of_a_config(tmp_path, text):
    (tmp_path / "models.config").write_text(text)
    with pytest.raises(ValueError, match=r"must hold no comments.*models\.config"):
        versions._check_comments(tmp_path / "models.config")


def test_a_number_sign_in_a_path_is_no_comment(tmp_path):
    (tmp_path / "models.config").write_text('base_path: "/data/#1/\\"x\\"#"')
    versions._check_comments(tmp_path / "models.config")


def test_the_demo_leaves_pictures_of_someone_else_as_they_are(tmp_path, scene_records):
    from sigline import demo

    folder = tmp_path / "images"
    demo._write_images(scene_records[:3], folder)
    (folder / "cat.png").write_text(MINE)
    first, second, third = sorted(demo._write_images(scene_records[:3], folder))
    assert first.read_bytes() == scene_records[0].image
    demo._write_images(scene_records[:2], folder)
    assert not third.exists()
    second.write_text(MINE)
    with pytest.raises(ValueError, match=f"{second.name} is in the way: sigline demo did not"):
        demo._write_images(scene_records[:2], folder)
    assert (folder / "cat.png").read_text() == second.read_text() == MINE
