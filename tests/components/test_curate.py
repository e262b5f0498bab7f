import json

import apache_beam as beam
import numpy as np
import pytest

from sigline import cli
from sigline.components.curate import choice_transforms, rules
from sigline.components.curate.rules import Candidate, CurateConfig, Embedded
from sigline.schemas.selection import Selection
from sigline.trainer.inputs import data, shards
from sigline.trainer.inputs.needs import of_pairs
from sigline.trainer.inputs.preprocess import Tokenizer


def _candidate(number, text="a dog"):
    return Candidate(f"shard-{number % 7}", number // 7, f"key{number:05d}", (text,))


def _run(items, *applied, workers=1):
    options = beam.options.pipeline_options.PipelineOptions(
        [f"--direct_num_workers={workers}", "--direct_running_mode=multi_threading"]
    )
    with beam.Pipeline(runner="FnApiRunner", options=options) as pipeline:
        collection = pipeline | beam.Create(items) | beam.Reshuffle()
        for transform in applied:
            collection = collection | transform
        _ = collection | beam.combiners.ToList() | beam.Map(_collect)
    return _collect.found


def _collect(items):
    _collect.found = items


@pytest.mark.parametrize("fraction", [0.001, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["spread", "close", "equal", "signed"])
def test_most_similar_share_is_exact(kind, fraction):
    rng = np.random.default_rng(0)
    scores = {
        "spread": rng.normal(size=400),
        "close": 0.25 + 1e-7 * rng.integers(0, 40, 400),
        "equal": np.full(400, 0.3),
        "signed": rng.choice([-0.0, 0.0, -1.0, 1.0, float("nan")], 400),
    }[kind].astype(np.float32)
    items = [(_candidate(i), Embedded(float(score))) for i, score in enumerate(scores)]
    found = _run(items, choice_transforms.TopFraction(fraction, score=lambda item: item[1][0]))
    # What is no number is the least; of equal scores keys decide.
    order = sorted(range(400), key=lambda i: (-np.nan_to_num(scores[i], nan=-9.0), i))
    expected = order[: max(1, round(fraction * 400))]
    assert {item[0].key for item in found} == {f"key{i:05d}" for i in expected}


def test_scores_keep_their_order_as_integers():
    values = [-np.inf, -1e30, -1.0, -1e-40, 0.0, 1e-40, 0.25, 0.25000003, 1.0, np.inf]
    found = [rules.ordered(value) for value in values]
    assert found == sorted(set(found))
    assert rules.ordered(-0.0) == rules.ordered(0.0)


def test_entries_match_as_words_and_not_within_them():
    entries = rules.Entries(["cat", "new york", "New  York City", "red-haired", "..."])
    assert entries.matched(["A cat in New York."]) == ["cat", "new york"]
    assert entries.matched(["concatenate", "york new"]) == []
    assert entries.matched(["NEW YORK CITY", "a Cat", "a cat"]) == [
        "cat",
        "new york",
        "new york city",
    ]
    assert entries.matched(["red haired"]) == ["red haired"]


def test_balance_follows_metaclips_formula():
    """Against the formula itself: a pair stays with probability 1 - prod(1 - t / max(count, t))."""
    rng = np.random.default_rng(0)
    names = [f"entry{i}" for i in range(6)]
    shares = [0.9, 0.5, 0.2, 0.05, 0.01, 0.003]
    limit, number = 150, 6000
    items, matched = [], []
    for i in range(number):
        own = [name for name, share in zip(names, shares, strict=True) if rng.random() < share]
        items.append(_candidate(i, " and ".join(own) or "nothing"))
        matched.append(own)
    counts = {name: sum(name in own for own in matched) for name in names}
    kept = _run(
        items,
        choice_transforms.BalanceEntries(rules.Entries(names), CurateConfig(entry_limit=limit)),
    )
    keys = {item.key for item in kept}
    expected = np.array(
        [1 - np.prod([1 - limit / max(counts[name], limit) for name in own]) for own in matched]
    )
    deviation = np.sqrt((expected * (1 - expected)).sum())
    assert abs(len(keys) - expected.sum()) < 4 * deviation
    # What matches nothing is left out, and of rare entries all stay.
    for item, own in zip(items, matched, strict=True):
        if not own:
            assert item.key not in keys
        if any(counts[name] <= limit for name in own):
            assert item.key in keys
    # The tail's share rises.
    tail = [i for i, own in enumerate(matched) if names[4] in own or names[5] in own]
    kept_tail = sum(items[i].key in keys for i in tail)
    assert kept_tail / len(keys) > 3 * len(tail) / number


def _planted_clusters(sizes, dim=16):
    rng = np.random.default_rng(3)
    centres = np.linalg.qr(rng.normal(size=(dim, dim)))[0][: len(sizes)]
    items, truth = [], []
    for cluster, size in enumerate(sizes):
        for _ in range(size):
            vector = centres[cluster] + 0.05 * rng.normal(size=dim)
            vector = (vector / np.linalg.norm(vector)).astype(np.float32)
            items.append((_candidate(len(items)), Embedded(0.0, vector)))
            truth.append(cluster)
    return items, np.array(truth), centres


def test_clusters_are_found_and_balanced():
    sizes = (400, 100, 30, 10)
    items, truth, _ = _planted_clusters(sizes)
    settings = CurateConfig(clusters=4, cluster_limit=40, cluster_rounds=5)
    found = _run(items, choice_transforms.BalanceClusters(settings))
    kept = np.bincount([truth[int(item[0].key[3:])] for item in found], minlength=4)
    assert kept[2:].tolist() == [30, 10]
    assert 20 <= kept[0] <= 65
    assert 25 <= kept[1] <= 58


def test_kmeans_is_that_of_one_array():
    items, _, _ = _planted_clusters((60, 40, 20))
    settings = CurateConfig(clusters=3, cluster_limit=1, cluster_rounds=4)
    (found,) = _run(items, choice_transforms.KMeans(settings))
    vectors = np.stack([item[1][1] for item in items]).astype(np.float64)
    by_coin = sorted(items, key=lambda item: (rules.coin(0, "sample", item[0].key), item[0].key))
    sample = [(item[0].key, item[1][1]) for item in by_coin[:96]]
    centres = rules.first_centres(sample, 3, 0)
    for _ in range(4):
        places = np.argmax(vectors @ centres.T, axis=1)
        sums = np.stack([vectors[places == place].sum(axis=0) for place in range(3)])
        centres = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    np.testing.assert_allclose(found, centres, atol=1e-9)


def test_number_of_workers_and_order_change_nothing():
    items, _, _ = _planted_clusters((200, 50, 9))
    settings = CurateConfig(clusters=3, cluster_limit=20, cluster_rounds=3)
    one = _run(items, choice_transforms.BalanceClusters(settings))
    many = _run(items[::-1], choice_transforms.BalanceClusters(settings), workers=4)
    assert {item[0] for item in one} == {item[0] for item in many}
    (centres,) = _run(items, choice_transforms.KMeans(settings))
    (others,) = _run(items[::-1], choice_transforms.KMeans(settings), workers=4)
    np.testing.assert_array_equal(centres, others)


def test_more_clusters_than_pairs_are_refused():
    with pytest.raises(ValueError, match="at most the number of pairs"):
        rules.first_centres([("a", np.ones(2))], 2, 0)


def test_equal_pairs_are_clusters_too():
    sample = [(str(i), np.array([1.0, 0.0])) for i in range(5)]
    assert rules.first_centres(sample, 3, 0).shape == (3, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"similarity_fraction": 0.0}, "above 0"),
        ({"similarity_fraction": 0.5, "min_similarity": 0.2}, "exclude each other"),
        ({"clusters": 5}, "given together"),
        ({"entry_limit": 0}, "at least 1"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CurateConfig(**options)


@pytest.fixture(scope="module")
def model_dir(model_without_classes):
    return model_without_classes


def _select(examples, output, *options):
    arguments = ["data", "select", "--data", str(examples), "--output", str(output), *options]
    return cli.main(arguments)


def test_similarity_is_that_of_the_model(examples, model_dir, scene_records, tmp_path):
    from sigline.components.shared import served_model
    from sigline.schemas import signatures

    output = tmp_path / "selection"
    options = ["--model", str(model_dir), "--similarity-fraction", "0.3"]
    assert _select(examples, output, *options) == 0
    model = served_model.load(str(model_dir))
    score = {}
    for item in scene_records:
        image = served_model.embed(model, signatures.EMBED_IMAGE, [item.image])[0]
        texts = served_model.embed(model, signatures.EMBED_TEXT, list(item.text))
        score[item.key] = float((texts @ image).mean())
    expected = sorted(score, key=lambda key: -score[key])[:30]
    keys = [
        json.loads(line)
        for path in sorted((output / "Split-train" / "keys").iterdir())
        for line in path.read_text().splitlines()
    ]
    # Batches of another size may move the last digits of those at the border.
    assert len(set(keys)) == 30
    assert len(set(keys) & set(expected)) >= 29


def test_choices_follow_each_other(examples, model_dir, tmp_path, capsys):
    entries = tmp_path / "entries.txt"
    entries.write_text("red\nblue\n")
    options = ["--model", str(model_dir), "--similarity-fraction", "0.5", "--entries", str(entries)]
    assert _select(examples, tmp_path / "out", *options, "--entry-limit", "5") == 0
    selection = Selection.from_json((tmp_path / "out/Split-train/selection.json").read_text())
    assert 0 < selection.selected <= 30
    assert f"Chose {selection.selected} of 100 records" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "must say what to choose"),
        (["--min-similarity", "0.1"], "needs a model"),
        (["--entry-limit", "5"], "must be given together"),
        (["--clusters", "5"], "given together"),
        (["--clusters", "5", "--cluster-limit", "5"], "needs a model"),
    ],
)
def test_wrong_options_are_one_sentence(examples, tmp_path, capsys, options, message):
    assert _select(examples, tmp_path / "out", *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_nothing_chosen_is_refused(examples, tmp_path, capsys):
    entries = tmp_path / "entries.txt"
    entries.write_text("no such word\n")
    options = ["--entries", str(entries), "--entry-limit", "5"]
    assert _select(examples, tmp_path / "out", *options) == 2
    assert "choose less strictly" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [entries]


def test_selected_keys_are_those_that_are_trained_on(
    examples, tmp_path, contract_config, vocabulary
):
    entries = tmp_path / "entries.txt"
    entries.write_text("red\nblue\n")
    assert (
        _select(examples, tmp_path / "out", "--entries", str(entries), "--entry-limit", "20") == 0
    )
    folder = tmp_path / "out" / "Split-train"
    keys = {
        json.loads(line)
        for path in (folder / "keys").iterdir()
        for line in path.read_text().splitlines()
    }
    count = shards.open_split(folder).num_examples
    assert count == len(keys)
    steps = count // 8 + 1
    seen = [
        key
        for step in range(1, steps + 1)
        for key in data.batch_keys(folder, contract_config, number=step)
    ]
    # The batch in which an epoch ends begins the next one, whose records may stand before.
    whole = seen[: 8 * (count // 8)]
    assert len(set(whole)) == len(whole)
    assert set(seen) == keys
    tokenizer = Tokenizer(vocabulary, contract_config.text)
    wanted = of_pairs(contract_config.image, tokenizer)
    batch = next(iter(data.training_batches(folder, contract_config, wanted, first_step=3)))
    assert batch["text"].shape[0] == 8


@pytest.fixture(scope="module")
def captionless(scene_records, tmp_path_factory):
    """Returns a function that writes examples of which so many records have no caption."""
    import dataclasses

    from sigline.schemas import digests, tf_example

    def _write(count):
        folder = tmp_path_factory.mktemp("captionless")
        records = [
            dataclasses.replace(item, text=(), language=()) if number < count else item
            for number, item in enumerate(scene_records[:40])
        ]
        path = folder / "Split-train" / "data_tfrecord-00000-of-00001.gz"
        path.parent.mkdir()
        tf_example.write_shard(str(path), map(tf_example.encode, records))
        shard = {"records": len(records), "sha256": digests.file_digest(path)}
        splits = {"train": {"shards": {path.name: shard}}}
        (folder / "manifest.json").write_text(json.dumps({"splits": splits}))
        return folder, {item.key for item in records[:count]}

    return _write


def _selected_keys(output):
    return {
        json.loads(line)
        for path in (output / "Split-train" / "keys").iterdir()
        for line in path.read_text().splitlines()
    }


def test_records_without_captions_are_left_out_of_choices_by_captions(
    captionless, model_dir, tmp_path, capfd
):
    folder, without = captionless(15)
    model = ["--model", str(model_dir)]
    labels, entries = tmp_path / "labels.txt", tmp_path / "entries.txt"
    labels.write_text("a red circle\na blue square\n")
    entries.write_text("red\nblue\ngreen\na\n")
    for name, options in (
        ("similarity_fraction", [*model, "--similarity-fraction", "1"]),
        ("min_similarity", [*model, "--min-similarity", "-1"]),
        (
            "covariance_fraction",
            [*model, "--covariance-fraction", "1", "--labels", str(labels)],
        ),
        ("entry_limit", ["--entries", str(entries), "--entry-limit", "1000"]),
    ):
        assert _select(folder, tmp_path / name, *options) == 0
        keys = _selected_keys(tmp_path / name)
        assert keys
        assert not keys & without
        if name != "entry_limit":
            assert len(keys) == 25
        message = f"15 of 40 records have no caption, which {name} needs: they are left out."
        assert message in capfd.readouterr().err


def test_choices_by_images_need_no_captions(captionless, model_dir, tmp_path, capfd):
    folder, without = captionless(40)
    model = ["--model", str(model_dir)]
    for name, options in (
        ("clusters", ["--clusters", "2", "--cluster-limit", "1000"]),
        (
            "target",
            ["--target", str(folder), "--target-limit", "40", "--target-clusters", "4"],
        ),
    ):
        assert _select(folder, tmp_path / name, *model, *options) == 0
        keys = _selected_keys(tmp_path / name)
        assert keys <= without
        assert len(keys) == 40 if name == "clusters" else keys
        assert "no caption" not in capfd.readouterr().err


def test_choice_by_captions_of_records_without_any_is_one_sentence(
    captionless, model_dir, tmp_path, capsys
):
    folder, _ = captionless(40)
    options = ["--model", str(model_dir), "--similarity-fraction", "0.5"]
    assert _select(folder, tmp_path / "out", *options) == 2
    error = capsys.readouterr().err
    assert "similarity_fraction must choose among records with captions" in error
    assert "40 records, all without captions" in error
    assert error.count("\n") == 1
