import dataclasses
import json
import os
import shutil

import apache_beam as beam
import numpy as np
import pyarrow.parquet as pq
import pytest

from sigline.components.index import build as build
from sigline.components.index import corpus, faiss_index, transforms
from sigline.components.index import saved_index as saved_index
from sigline.components.index.build import IndexRefused
from sigline.components.index.options import IndexConfig
from sigline.components.shared import served_model
from sigline.schemas import digests, record, retrieval, signatures, strict, tf_example


@pytest.fixture(scope="module")
def model_dir(contract_base):
    return str(contract_base / "3")


class Embedded:
    """An embedded corpus and where it is."""

    def __init__(self, folder, about):
        self.folder, self.about = folder, about

    def tables(self):
        return transforms.tables(self.folder, self.about)


def _embed(examples, model_dir, folder, **options):
    with beam.Pipeline(argv=["--runner=FnApiRunner"]) as pipeline:
        _ = pipeline | transforms.EmbedCorpus(
            str(examples), model_dir, str(folder), **({"splits": ("train",)} | options)
        )
    return Embedded(str(folder), transforms.load(str(folder)))


@pytest.fixture(scope="module")
def embedded(tmp_path_factory, examples, model_dir):
    return _embed(examples, model_dir, tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def index(tmp_path_factory, embedded, model_dir):
    folder = tmp_path_factory.mktemp("index") / "1"
    build.build([embedded.folder], model_dir, folder, IndexConfig(top=20))
    return folder


def _records(examples):
    for path in sorted((examples / "Split-train").iterdir()):
        yield from map(tf_example.decode, tf_example.read_shard(str(path)))


def test_corpus_holds_every_record_with_the_vector_of_its_image(embedded, examples, model_dir):
    known = {item.key: item for item in _records(examples)}
    model, found = served_model.load(model_dir), {}
    for table in embedded.tables():
        keys, vectors = table.column(retrieval.KEY).to_pylist(), corpus.vectors(table)
        texts = table.column(corpus.TEXT).to_pylist()
        expected = served_model.embed(
            model, signatures.EMBED_IMAGE, [known[key].image for key in keys]
        )
        np.testing.assert_allclose(vectors, expected, atol=1e-6)
        found |= dict(zip(keys, texts, strict=True))
    assert found == {key: list(item.text) for key, item in known.items()}
    assert embedded.about.records == 100
    assert not embedded.about.unreadable


def test_thumbnails_are_small_pictures_of_the_images(embedded, examples):
    from io import BytesIO

    from PIL import Image

    known = {item.key: item for item in _records(examples)}
    table = next(iter(embedded.tables()))
    for key, small in zip(
        table.column(retrieval.KEY).to_pylist()[:5],
        table.column(corpus.THUMBNAIL).to_pylist(),
        strict=False,
    ):
        original = Image.open(BytesIO(known[key].image)).convert("RGB")
        shown = Image.open(BytesIO(small))
        assert max(shown.size) <= corpus.THUMBNAIL_SIZE
        different = np.abs(np.asarray(shown, float) - np.asarray(original.resize(shown.size)))
        assert different.mean() < 8


def test_what_is_embedded_is_not_embedded_again(embedded, examples, model_dir, monkeypatch):
    before = {path: digests.file_digest(path) for path in _files(embedded.folder)}
    monkeypatch.setattr(served_model, "load", lambda directory: pytest.fail("embedded again"))
    again = _embed(examples, model_dir, embedded.folder)
    assert again.about == embedded.about
    assert {path: digests.file_digest(path) for path in _files(embedded.folder)} == before


def test_equal_corpora_are_equal_to_the_byte(embedded, examples, model_dir, tmp_path):
    again = _embed(examples, model_dir, tmp_path)
    assert again.about.digest == embedded.about.digest


def test_unreadable_image_is_named_and_costs_no_other(examples, model_dir, tmp_path):
    items = list(_records(examples))[:3]
    folder = tmp_path / "examples" / "Split-train"
    folder.mkdir(parents=True)
    broken = record.ImageTextRecord(**{**vars(items[1]), "image": b"\x89PNG\r\n\x1a\nbroken"})
    tf_example.write_shard(
        str(folder / "a.gz"), map(tf_example.encode, [items[0], broken, items[2]])
    )
    _write_manifest(folder.parent, {"a.gz": 3})
    found = _embed(folder.parent, model_dir, tmp_path / "out")
    assert found.about.records == 2
    assert found.about.unreadable == [f"{broken.source}/{broken.key}"]


def test_lost_records_stop_the_run(examples, model_dir, tmp_path):
    folder = tmp_path / "examples" / "Split-train"
    folder.mkdir(parents=True)
    tf_example.write_shard(
        str(folder / "a.gz"), map(tf_example.encode, list(_records(examples))[:3])
    )
    _write_manifest(folder.parent, {"a.gz": 4})
    with pytest.raises(RuntimeError, match="lost or doubled records"):
        _embed(folder.parent, model_dir, tmp_path / "out")
    assert not (tmp_path / "out" / corpus.MANIFEST_FILE).exists()


def test_texts_and_images_and_vectors_find_what_brute_force_finds(index, embedded, model_dir):
    vectors = np.concatenate([corpus.vectors(table) for table in embedded.tables()])
    keys = [k for table in embedded.tables() for k in table.column(retrieval.KEY).to_pylist()]
    model, served = served_model.load(model_dir), served_model.load(str(index))
    texts = ["a red square", "a big blue circle left of a green star"]
    queries = served_model.embed(model, signatures.EMBED_TEXT, texts)
    found = served_model.call(served, retrieval.RETRIEVE_TEXT, texts)
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :20]
    np.testing.assert_allclose(found[retrieval.SCORE], np.sort(scores)[:, :-21:-1], atol=1e-5)
    np.testing.assert_allclose(
        np.take_along_axis(scores, found[retrieval.ROW], axis=1),
        np.take_along_axis(scores, order, axis=1),
        atol=1e-6,
    )
    assert [[k.decode() for k in row] for row in found[retrieval.KEY]] == [
        [keys[i] for i in row] for row in found[retrieval.ROW]
    ]
    import tensorflow as tf

    digest = corpus.describe(served_model.metadata(model_dir))[0]
    # Queries may have any length: only the direction counts.
    answer = served.signatures[retrieval.RETRIEVE](
        embedding=tf.constant(3 * queries), model_digest=tf.constant([digest] * 2)
    )
    np.testing.assert_allclose(answer[retrieval.SCORE], found[retrieval.SCORE], atol=1e-6)


def test_an_image_of_the_corpus_finds_itself(index, examples):
    items = list(_records(examples))[:8]
    served = served_model.load(str(index))
    found = served_model.call(served, retrieval.RETRIEVE_IMAGE, [item.image for item in items])
    np.testing.assert_allclose(found[retrieval.SCORE][:, 0], 1.0, atol=1e-5)
    assert (np.diff(found[retrieval.SCORE], axis=1) <= 0).all()


def test_vectors_of_another_model_are_refused(index):
    import tensorflow as tf

    served = served_model.load(str(index))
    dim = json.loads((index / signatures.ASSETS_DIR / retrieval.INDEX_FILE).read_text())["dim"]
    with pytest.raises(tf.errors.InvalidArgumentError, match="must be that of this index"):
        served.signatures[retrieval.RETRIEVE](
            embedding=tf.zeros((1, dim)), model_digest=tf.constant(["another"])
        )


def test_several_blocks_answer_as_one(tmp_path, embedded, model_dir, index, monkeypatch):
    monkeypatch.setattr(saved_index, "_BLOCK", 7)
    build.build([embedded.folder], model_dir, tmp_path / "1", IndexConfig(top=20))
    texts = ["a red square", "a small star", ""]
    one, many = (
        served_model.call(served_model.load(str(path)), retrieval.RETRIEVE_TEXT, texts)
        for path in (index, tmp_path / "1")
    )
    np.testing.assert_allclose(one[retrieval.SCORE], many[retrieval.SCORE], atol=1e-6)
    np.testing.assert_array_equal(one[retrieval.ROW], many[retrieval.ROW])


def test_several_corpora_are_one_index(tmp_path, embedded, examples, model_dir):
    for split in ("one", "two"):
        folder = tmp_path / split / "Split-train"
        folder.mkdir(parents=True)
    shards = sorted((examples / "Split-train").iterdir())
    for split, shard in zip(("one", "two"), shards, strict=True):
        shutil.copy(shard, tmp_path / split / "Split-train" / "a.gz")
        _write_manifest(tmp_path / split, {"a.gz": 50})
        _embed(tmp_path / split, model_dir, tmp_path / f"{split}.corpus")
    folders = [str(tmp_path / f"{split}.corpus") for split in ("one", "two")]
    about = build.build(folders, model_dir, tmp_path / "index", IndexConfig(top=100))
    assert about["records"] == 100
    keys = [k for table in embedded.tables() for k in table.column(retrieval.KEY).to_pylist()]
    gallery = pq.read_table(tmp_path / "index" / signatures.ASSETS_DIR / retrieval.GALLERY_FILE)
    assert gallery.column(retrieval.KEY).to_pylist() == keys


@pytest.mark.tfx
@pytest.mark.parametrize("blessed", [1, 0])
def test_component_indexes_all_examples_of_a_blessed_model(
    tmp_path, examples, contract_base, blessed
):
    from tfx.types import standard_artifacts

    from sigline.components.index.component import IndexCorpus
    from sigline.components.shared.artifact_types import EmbeddingIndex
    from sigline.schemas import artifacts

    def artifact(kind, uri, number=0):
        made = kind()
        made.uri, made.id = str(uri), number
        return made

    shards = sorted((examples / "Split-train").iterdir())
    given = []
    for number, shard in enumerate(shards):
        folder = tmp_path / str(number)
        (folder / "Split-train").mkdir(parents=True)
        shutil.copy(shard, folder / "Split-train" / "a.gz")
        _write_manifest(folder, {"a.gz": 50})
        given.append(artifact(standard_artifacts.Examples, folder, number))
    model = artifact(standard_artifacts.Model, tmp_path / "model")
    shutil.copytree(contract_base / "3", tmp_path / "model" / "Format-Serving")
    blessings = [
        artifact(kind, tmp_path)
        for kind in (standard_artifacts.ModelBlessing, standard_artifacts.InfraBlessing)
    ]
    for item in blessings:
        item.set_int_custom_property(artifacts.BLESSED_PROPERTY, blessed)
    index = artifact(EmbeddingIndex, tmp_path / "out")
    (tmp_path / "out").mkdir()
    IndexCorpus.EXECUTOR_SPEC.executor_class._FUNCTION(
        examples=given[::-1],
        model=model,
        model_blessing=blessings[0],
        infra_blessing=blessings[1],
        index=index,
        config=IndexConfig(splits=("train",)).to_json(),
        corpus_root=str(tmp_path / "corpora"),
        code_digest="",
        beam_pipeline=beam.Pipeline(argv=["--runner=FnApiRunner"]),
    )
    assert index.get_int_custom_property(artifacts.BUILT_PROPERTY) == blessed
    about = tmp_path / "out" / artifacts.INDEX_FOLDER / signatures.ASSETS_DIR
    if blessed:
        assert json.loads((about / retrieval.INDEX_FILE).read_text())["records"] == 100
        assert index.get_int_custom_property("records") == 100
    else:
        assert not about.exists()


def test_equal_images_come_in_the_order_of_rows(tmp_path, model_dir, monkeypatch):
    monkeypatch.setattr(saved_index, "_BLOCK", 4)
    dim = corpus.describe(served_model.metadata(model_dir))[1]
    vectors = np.zeros((11, dim), np.float32)
    vectors[:, 0] = 1
    names = [str(i) for i in range(11)]
    saved_index.save(str(tmp_path), model_dir, vectors, names, names, model_digest="digest", top=10)
    found = served_model.call(served_model.load(str(tmp_path)), retrieval.RETRIEVE_TEXT, ["a star"])
    assert found[retrieval.ROW].tolist() == [list(range(10))]


def test_index_says_what_it_is(index, embedded, model_dir):
    about = json.loads((index / signatures.ASSETS_DIR / retrieval.INDEX_FILE).read_text())
    assert about[retrieval.MODEL_DIGEST] == served_model.metadata(model_dir)["model_digest"]
    assert {name: about[name] for name in ("records", "unreadable", "recall", "queries")} == {
        "records": 100,
        "unreadable": 0,
        "recall": 1.0,
        "queries": 47,
    }
    whole = corpus.joined(embedded.about.model_digest, embedded.about.dim, [embedded.about])
    assert about["corpus_digest"] == whole.digest
    gallery = pq.ParquetFile(index / signatures.ASSETS_DIR / retrieval.GALLERY_FILE)
    assert gallery.metadata.num_rows == 100
    assert retrieval.EMBEDDING not in gallery.schema.names


def test_corpus_of_another_model_is_refused(embedded, vocabulary, tmp_path, contract_config):
    from sigline.trainer import config
    from sigline.trainer.export import saved_model
    from sigline.trainer.models import two_tower

    tiny = config.override(contract_config, ["seed=5"])
    other = tmp_path / "model"
    saved_model.export(other, two_tower.build(tiny), config=tiny, vocabulary=vocabulary)
    with pytest.raises(ValueError, match="embedded by another model"):
        build.build([embedded.folder], str(other), tmp_path / "index", IndexConfig())
    assert not (tmp_path / "index").exists()


def test_damaged_corpus_is_refused(examples, model_dir, tmp_path):
    _embed(examples, model_dir, tmp_path / "corpus")
    path = next(path for path in _files(tmp_path / "corpus") if path.endswith(".parquet"))
    with open(path, "r+b") as handle:
        handle.seek(100)
        handle.write(b"\xff\xff")
    with pytest.raises(ValueError, match="not the file that the manifest names"):
        build.build([str(tmp_path / "corpus")], model_dir, tmp_path / "index", IndexConfig())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus"]
    # Embedded again, it is whole; so it is if the file is lost.
    for mend in (lambda: None, lambda: os.remove(path)):
        mend()
        _embed(examples, model_dir, tmp_path / "corpus")
        assert sum(1 for _ in transforms.tables(*_corpus(tmp_path / "corpus"))) == 2


def test_index_that_loses_what_texts_ask_for_is_refused(embedded, model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_ask_saved", lambda _, texts, top: np.zeros((len(texts), top), int))
    with pytest.raises(IndexRefused, match="of the 10 best images"):
        build.build([embedded.folder], model_dir, tmp_path / "index", IndexConfig())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "annoy"}, "kind must be one of exact, faiss"),
        ({"top": 3}, "top must be at least 10"),
        ({"min_recall": 1.5}, "min_recall"),
        ({"splits": ()}, "splits"),
        ({"splits": "train"}, "index.splits must be a list"),
        ({"top": "20"}, "index.top must be a whole number"),
        ({"top": True}, "index.top must be a whole number"),
        ({"thumbnails": "no"}, "true or false"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        strict.build(IndexConfig, settings, "index.")


def test_faiss_visits_as_many_cells_as_texts_need():
    rng = np.random.default_rng(0)
    # Images in one cone, texts in another.
    images = rng.normal(size=(6000, 16)) + 2 * np.eye(16)[0]
    texts = rng.normal(size=(100, 16)) + 2 * np.eye(16)[1]
    images, texts = (
        (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (images, texts)
    )
    index = faiss_index.build(images)
    exact = np.argsort(-(texts @ images.T), axis=1)[:, :10]

    def recall():
        found = faiss_index.search(index, texts, 10)[1]
        return np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, exact, strict=True)])

    assert faiss_index.tune(index, recall, 0.97) >= 0.97
    assert 8 < index.nprobe < index.nlist
    again = faiss_index.build(images)
    again.nprobe = index.nprobe
    for one, other in zip(
        faiss_index.search(index, texts, 10), faiss_index.search(again, texts, 10), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_faiss_index_is_built_and_measured(embedded, model_dir, tmp_path):
    about = build.build(
        [embedded.folder], model_dir, tmp_path / "1", IndexConfig(kind=retrieval.FAISS)
    )
    assert about["recall"] == 1.0
    path = tmp_path / "1" / retrieval.FAISS_FILE
    assert digests.file_digest(path) == about["faiss_sha256"]
    index = faiss_index.read(str(path))
    vectors = np.concatenate([corpus.vectors(table) for table in embedded.tables()])
    scores, _ = faiss_index.search(index, vectors[:5], 3)
    np.testing.assert_allclose(scores[:, 0], 1.0, atol=1e-5)


def _corpus(folder):
    return str(folder), transforms.load(str(folder))


def _files(folder):
    return sorted(os.path.join(folder, name) for name in os.listdir(folder))


def _captionless(examples, folder, count):
    """Writes examples of which so many, the first, have no caption."""
    (folder / "Split-train").mkdir(parents=True)
    records = [
        dataclasses.replace(item, text=(), language=()) if i < count else item
        for i, item in enumerate(list(_records(examples))[:30])
    ]
    tf_example.write_shard(str(folder / "Split-train" / "a.gz"), map(tf_example.encode, records))
    _write_manifest(folder, {"a.gz": 30})
    return folder


def test_images_without_captions_are_in_the_index_and_measure_nothing(
    examples, model_dir, tmp_path
):
    from sigline.components.index import search

    corpus_of_few = _embed(
        _captionless(examples, tmp_path / "in", 20), model_dir, tmp_path / "corpus"
    )
    output = tmp_path / "index"
    about = build.build([corpus_of_few.folder], model_dir, output, IndexConfig(top=20))
    assert (about["records"], about["without_captions"]) == (30, 20)
    assert 0 < about["queries"] <= 10
    matches = search.LocalIndex(output).by_image(next(_records(examples)).image, top=20)
    assert matches[0].text == ()
    assert matches[0].score == pytest.approx(1)


def test_corpus_without_any_caption_is_refused(examples, model_dir, tmp_path):
    folder = _captionless(examples, tmp_path / "in", 30)
    embedded = _embed(folder, model_dir, tmp_path / "corpus")
    with pytest.raises(ValueError, match=r"at least one caption.*30 images, all without"):
        build.build([embedded.folder], model_dir, tmp_path / "index", IndexConfig())
    assert not (tmp_path / "index").exists()


def _write_manifest(folder, counts):
    shards = {
        name: {
            "records": count,
            "sha256": digests.file_digest(folder / "Split-train" / name),
        }
        for name, count in counts.items()
    }
    (folder / "manifest.json").write_text(json.dumps({"splits": {"train": {"shards": shards}}}))
