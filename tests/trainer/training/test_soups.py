import dataclasses
import functools
import itertools
import shutil

import numpy as np
import pytest

from sigline.trainer import config
from sigline.trainer.models import two_tower
from sigline.trainer.training import checkpoints, loop, soups
from sigline.trainer.weights import model_weights, weight_folders
from sigline.trainer.weights.model_weights import Weights

SHAPES = {"image/a": (3, 2), "text/b": (4,), "bias": ()}


@pytest.fixture(scope="module")
def tiny(few_parameters):
    settings = config.tiny(config.load_recipe("siglip_demo"))
    return config.override(settings, [*few_parameters, "run.keep_checkpoints=2"])


@pytest.fixture(scope="module")
def fine_tuned(tiny):
    """Five models that began alike."""
    rng = np.random.default_rng(0)
    found = {}
    for name in "abcde":
        # Two lie far from the others.
        far = 5.0 * (name in "bd")
        values = {key: rng.normal(far, size=shape) for key, shape in SHAPES.items()}
        values = {key: np.asarray(value, np.float32) for key, value in values.items()}
        found[name] = Weights(tiny, values, b"words", "origin")
    return found


def _loads(models):
    return {name: functools.partial(lambda item: item, item) for name, item in models.items()}


def _mean(models):
    return {key: np.mean([np.float64(x.parameters[key]) for x in models], axis=0) for key in SHAPES}


def _distance(parameters):
    """A score with an optimum, so that some ingredients help and some do not."""
    return -sum(float(np.sum((np.float64(x) - 0.3) ** 2)) for x in parameters.values())


def test_uniform_soup_is_the_mean(fine_tuned):
    soup = soups.uniform(_loads(fine_tuned))
    assert soup.ingredients == tuple("abcde")
    assert soup.score is None
    for key, value in _mean(fine_tuned.values()).items():
        found = soup.weights.parameters[key]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, np.float32(value))
    assert soup.weights.origin() == "origin"
    assert soup.weights.vocabulary == b"words"


def test_what_is_the_same_in_all_stays_so_to_the_bit(fine_tuned):
    frozen = fine_tuned["a"].parameters["image/a"]
    models = {
        name: dataclasses.replace(item, parameters={**item.parameters, "image/a": frozen})
        for name, item in fine_tuned.items()
    }
    for count in range(2, 6):
        some = dict(itertools.islice(models.items(), count))
        made = soups.uniform(_loads(some)).weights.parameters["image/a"]
        assert made.tobytes() == frozen.tobytes()


def test_greedy_soup_is_what_the_paper_writes(fine_tuned):
    def score(weights):
        return _distance(weights.parameters)

    order = sorted(fine_tuned, key=lambda name: -score(fine_tuned[name]))
    chosen, reached = [order[0]], score(fine_tuned[order[0]])
    for name in order[1:]:
        models = [fine_tuned[other] for other in [*chosen, name]]
        value = _distance({key: np.float32(x) for key, x in _mean(models).items()})
        if value >= reached:
            chosen, reached = [*chosen, name], value
    soup = soups.greedy(_loads(fine_tuned), score)
    assert soup.ingredients == tuple(chosen)
    assert 1 < len(chosen) < len(fine_tuned)
    assert soup.score == pytest.approx(reached, rel=1e-12)
    assert soup.score == score(soup.weights)
    assert soup.score >= max(soup.alone.values())
    assert [name for name, _ in soup.tried] == order[1:]


def test_greedy_soup_of_what_only_hurts_is_the_best_model(fine_tuned):
    loved = fine_tuned["c"].parameters

    def score(weights):
        return -sum(float(np.abs(x - loved[key]).sum()) for key, x in weights.parameters.items())

    soup = soups.greedy(_loads(fine_tuned), score)
    assert soup.ingredients == ("c",)
    for key, value in loved.items():
        assert soup.weights.parameters[key].tobytes() == value.tobytes()


def test_best_of_equals_is_the_first(fine_tuned):
    soup = soups.best(_loads(fine_tuned), lambda weights: float(weights.parameters["bias"] > -9.0))
    assert soup.ingredients == ("a",)
    assert soup.score == 1.0


@pytest.mark.parametrize("make", [soups.uniform, lambda x: soups.greedy(x, lambda _: 0.0)])
def test_models_that_did_not_begin_alike_are_refused(fine_tuned, make, tiny):
    one = fine_tuned["a"]
    larger = config.override(tiny, ["image.num_heads=1"])
    for change, problem in (
        ({"initial_digest": "another"}, "initialisation"),
        ({"initial_digest": None}, "initialisation"),
        ({"vocabulary": b"other words"}, "vocabulary"),
        ({"config": larger}, "towers"),
        ({"parameters": {"bias": np.zeros((), np.float32)}}, "parameters"),
    ):
        other = dataclasses.replace(fine_tuned["c"], **change)
        with pytest.raises(ValueError, match=f"b and a with different {problem}"):
            make(_loads({"a": one, "b": other}))


def test_models_may_be_mixed_with_the_one_they_were_tuned_from(fine_tuned):
    base = dataclasses.replace(fine_tuned["e"], initial_digest="its own")
    began = model_weights.parameters_digest(base.parameters)
    tuned = {
        name: dataclasses.replace(fine_tuned[name], initial_digest=began) for name in ("a", "c")
    }
    for models in ({"base": base} | tuned, tuned | {"base": base}):
        soup = soups.uniform(_loads(models))
        assert set(soup.ingredients) == {"a", "c", "base"}
        assert soup.weights.origin() == began
    # But what is kin to one of them only is not kin to all.
    sibling = dataclasses.replace(fine_tuned["b"], initial_digest="its own")
    with pytest.raises(ValueError, match="b and base with different initialisation"):
        soups.uniform(_loads({"base": base} | tuned | {"b": sibling}))


def test_model_that_diverged_is_refused_by_name(fine_tuned):
    broken = {**fine_tuned["b"].parameters, "bias": np.asarray(np.nan, np.float32)}
    models = fine_tuned | {"b": dataclasses.replace(fine_tuned["b"], parameters=broken)}
    with pytest.raises(ValueError, match="b has parameters that are not finite: bias"):
        soups.greedy(_loads(models), lambda _: pytest.fail("scored before it was checked"))


def test_a_soup_takes_two(fine_tuned):
    for make in (soups.uniform, lambda x: soups.greedy(x, lambda _: 0.0)):
        with pytest.raises(ValueError, match="two models at least"):
            make(_loads({"a": fine_tuned["a"]}))


def test_what_is_dropped_in_training_may_differ(fine_tuned):
    other = config.override(fine_tuned["a"].config, ["image.block.stochastic_depth=0.1"])
    models = {"a": fine_tuned["a"], "b": dataclasses.replace(fine_tuned["b"], config=other)}
    assert len(soups.uniform(_loads(models)).ingredients) == 2


@pytest.fixture(scope="module")
def train(tiny, split_dir, vocabulary, tmp_path_factory):
    """Trains in a folder and returns it with the result."""

    def run(*overrides, weights=None, folder=None):
        settings = config.override(tiny, list(overrides))
        folder = folder or tmp_path_factory.mktemp("run")
        result = loop.train(
            settings,
            split_dir=split_dir,
            vocabulary=vocabulary,
            checkpoint_dir=folder / "checkpoints",
            weights=weights,
        )
        return folder, result

    return run


AVERAGED = ("optimizer.ema_decay=0.5", "run.keep_every_steps=2")


@pytest.fixture(scope="module")
def averaged(train):
    return train(*AVERAGED)


def _values(model):
    return {name: x.numpy() for name, x in two_tower.named_variables(model).items()}


def test_a_run_stands_for_its_checkpoints(averaged, vocabulary):
    folder, result = averaged
    found = soups.find([folder])
    # Those of the second step are kept twice.
    assert [name.rpartition("-")[2] for name in found] == ["2", "4"]
    last = list(found.values())[-1]()
    assert last.vocabulary == vocabulary
    assert last.config.optimizer.ema_decay == 0.5
    assert last.initial_digest == result.initial_digest
    values = _values(result.model)
    assert set(last.parameters) == set(values)
    for name, value in values.items():
        assert last.parameters[name].tobytes() == value.tobytes()
    soup = soups.uniform(found)
    assert soup.weights.origin() == result.initial_digest


def test_checkpoint_may_be_named(averaged, tmp_path):
    folder, _ = averaged
    path = folder / "checkpoints" / checkpoints.KEPT_FOLDER / "step-2"
    (load,) = soups.find([path]).values()
    assert load().initial_digest is not None
    with pytest.raises(ValueError, match="must come once"):
        soups.find([path, path])
    with pytest.raises(ValueError, match="Weights must be a folder"):
        soups.find([tmp_path])[str(tmp_path)]()


def test_damaged_checkpoint_is_named(averaged, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    shutil.copytree(averaged[0] / "checkpoints", folder)
    path = checkpoints.find(folder)[4]
    data = next(path.parent.glob(f"{path.name}.data*"))
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"-4 is damaged"):
        checkpoints.read(path)
    shutil.rmtree(folder / checkpoints.DESCRIPTION_FOLDER)
    with pytest.raises(ValueError, match="must have a folder description"):
        checkpoints.read(path)


def test_runs_from_the_same_weights_are_of_one_lineage(train, averaged, tiny, vocabulary):
    _, other = train("seed=1", "steps=1")
    assert other.initial_digest != averaged[1].initial_digest
    weights = Weights(tiny, _values(other.model), vocabulary)
    digests = {
        train(f"seed={seed}", "steps=1", 'pretrained=[".*"]', weights=weights)[1].initial_digest
        for seed in (2, 3)
    }
    # The weights themselves too, so that a fine-tuned model may be mixed with what it was before.
    assert digests == {weights.origin()}


def test_run_that_goes_on_has_the_lineage_it_began_with(train, averaged, tmp_path):
    first = averaged[1]
    folder = shutil.copytree(averaged[0], tmp_path / "run")
    _, second = train(*AVERAGED, "steps=5", folder=folder)
    assert second.first_step == 4
    assert second.initial_digest == first.initial_digest


def test_lineage_is_kept_with_weights(fine_tuned, tmp_path):
    weight_folders.save(tmp_path / "w", fine_tuned["a"], notes={"soup.json": b"{}"})
    assert weight_folders.load(tmp_path / "w").origin() == "origin"
    assert (tmp_path / "w" / "soup.json").read_bytes() == b"{}"
    (tmp_path / "w" / weight_folders.LINEAGE_FILE).write_text("[]")
    with pytest.raises(ValueError, match="must hold a text initial_digest"):
        weight_folders.load(tmp_path / "w")


def test_one_vocabulary_in_other_bytes_is_no_other(fine_tuned, vocabulary):
    # With a field at its end that SentencePiece does not know.
    words = {"a": vocabulary, "b": vocabulary + bytes([0xC2, 0x0C, 0x01, 0x78])}
    models = {n: dataclasses.replace(fine_tuned[n], vocabulary=x) for n, x in words.items()}
    assert soups.uniform(_loads(models)).weights.vocabulary == vocabulary
    models["b"] = dataclasses.replace(fine_tuned["b"], vocabulary=b"other words")
    with pytest.raises(ValueError, match="different vocabulary"):
        soups.uniform(_loads(models))
