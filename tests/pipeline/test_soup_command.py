"""`sigline soup`, as a user calls it."""

import json

import numpy as np
import pytest

from sigline import cli
from sigline.components.scenes import grammar
from sigline.trainer.models import two_tower
from sigline.trainer.weights import weight_folders
from sigline.trainer.weights.model_weights import Weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory, vocabulary, contract_config):
    """Weights of three models that began alike, and of one that did not."""
    folder = tmp_path_factory.mktemp("soup")
    variables = two_tower.named_variables(two_tower.build(contract_config))
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c", "stranger"):
        values = {
            key: x.numpy() + np.float32(0.02) * rng.normal(size=x.shape).astype(np.float32)
            for key, x in variables.items()
        }
        begun = "stranger" if name == "stranger" else "kin"
        weight_folders.save(folder / name, Weights(contract_config, values, vocabulary, begun))
    (folder / "classes.json").write_text(grammar.label_set().to_json())
    return folder


@pytest.fixture
def soup(folder, tmp_path):
    def run(names, *more, output=None):
        paths = [argument for name in names for argument in ("--weights", str(folder / name))]
        output = output or tmp_path / "out"
        return cli.main(["soup", *paths, "--output", str(output), *more]), output

    return run


@pytest.fixture
def scored(folder, split_dir):
    labels = str(folder / "classes.json")
    return ["--data", str(split_dir), "--split", "train", "--labels", labels]


def test_greedy_soup_is_written_and_said(soup, scored, folder, capsys):
    code, output = soup("abc", *scored, "--metric", "text_to_image_recall@10")
    assert code == 0
    made = json.loads((output / "soup.json").read_text())
    assert set(made["alone"]) == {str(folder / name) for name in "abc"}
    assert made["score"] >= max(made["alone"].values())
    assert len(made["tried"]) == 2
    assert made["data_digest"]
    for path, digest in made["ingredients"].items():
        assert weight_folders.load(path).digest() == digest
    said = capsys.readouterr().out
    assert f"Wrote {len(made['ingredients'])} of 3 models as one to {output}" in said
    assert said.count("\n+ ") + said.startswith("+ ") == len(made["ingredients"])
    assert weight_folders.load(output).origin() == "kin"


def test_best_of_the_low(soup, scored):
    code, output = soup("ab", *scored, "--method", "best", "--minimize", "--metric", "modality_gap")
    assert code == 0
    made = json.loads((output / "soup.json").read_text())
    assert made["score"] == min(made["alone"].values())
    assert min(made["alone"].values()) > 0.0


def test_uniform_soup_needs_no_data_and_can_be_served(soup, folder, tmp_path):
    code, output = soup("abc", "--method", "uniform")
    assert code == 0
    mean = np.mean([np.float64(weight_folders.load(folder / x).parameters["bias"]) for x in "abc"])
    np.testing.assert_allclose(weight_folders.load(output).parameters["bias"], mean, rtol=1e-6)
    assert cli.main(["export", "--weights", str(output), "--output", str(tmp_path / "1")]) == 0
    metadata = json.loads((tmp_path / "1" / "assets.extra" / "sigline.json").read_text())
    assert metadata["initial_digest"] == "kin"


@pytest.mark.parametrize(
    ("names", "more", "message"),
    [
        (["a", "stranger"], ["--method", "uniform"], "with different initialisation"),
        (["a", "a"], ["--method", "uniform"], "must come once"),
        (["a"], ["--method", "uniform"], "two models at least"),
        (["a", "b"], [], "--method greedy needs --data"),
        (["a", "nothing"], ["--method", "uniform"], "nothing"),
    ],
)
def test_mistake_is_one_line(soup, capsys, names, more, message):
    code, output = soup(names, *more)
    assert code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not output.exists()


def test_unknown_metric_names_those_there_are(soup, scored, capsys):
    code, output = soup("ab", *scored, "--metric", "accuracy", "--method", "best")
    assert code == 2
    assert "zero_shot_accuracy" in capsys.readouterr().err
    assert not output.exists()


def test_output_is_never_overwritten(soup, capsys, tmp_path):
    code, _ = soup("ab", "--method", "uniform", output=tmp_path)
    assert code == 2
    assert "must not exist yet" in capsys.readouterr().err
