"""An index that is served, over gRPC and REST, and in TF Serving's loader."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import small_servers

from sigline import cli
from sigline.components.publish import indexes, publishing
from sigline.schemas import retrieval, signatures, versions
from sigline.serving.client import Client
from sigline.serving.client.search import ServedIndex
from sigline.serving.client.transport import RequestError


def _publish(index, model, base):
    return publishing.publish(index, base, marker=indexes.marker(index, model))


@pytest.fixture(scope="module")
def published(tmp_path_factory, index, contract_base):
    base = tmp_path_factory.mktemp("served") / "index"
    assert _publish(index, contract_base / "3", base).version == 1
    return base


@pytest.fixture(scope="module")
def server(published, contract_base):
    from sigline.serving.server.model_config import ModelConfig

    models = (
        ModelConfig("sigline", str(contract_base)),
        ModelConfig(retrieval.DEFAULT_NAME, str(published)),
    )
    with small_servers.running(published, models=models) as found:
        yield found


def test_published_index_is_whole_and_not_published_twice(published, index, contract_base):
    assert versions.verify(published / "1") is not None
    again = _publish(index, contract_base / "3", published)
    assert (again.version, again.copied) == (1, False)


def test_index_is_not_published_beside_another_model(tmp_path, index):
    assets = tmp_path / "model" / signatures.ASSETS_DIR
    assets.mkdir(parents=True)
    (assets / signatures.METADATA_FILE).write_text(json.dumps({"model_digest": "another"}))
    with pytest.raises(ValueError, match="the model that made it"):
        _publish(index, tmp_path / "model", tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_server_answers_texts_images_and_vectors(server, contract_base, scene_records):
    served = ServedIndex(server.address)
    rest = ServedIndex(f"http://127.0.0.1:{server.rest_port}")
    found = served.by_text("a red square", top=5)
    assert [match.row for match in rest.by_text("a red square", top=5)] == [x.row for x in found]
    assert len(found) == 5
    assert all(a.score >= b.score for a, b in itertools.pairwise(found))
    record = scene_records[3]
    (match,) = served.by_image(record.image, top=1)
    assert match.score == pytest.approx(1.0, abs=1e-5)
    # The model that is served beside it made the index: its vectors are taken, with its digest.
    model = Client(server.address)
    vectors = model.embed_texts(["a red square"])
    metadata = json.loads(
        (contract_base / "3" / signatures.ASSETS_DIR / signatures.METADATA_FILE).read_text()
    )
    asked = Client(server.address, model_name=retrieval.DEFAULT_NAME)
    answer = asked.predict(
        retrieval.RETRIEVE,
        {retrieval.EMBEDDING: vectors, retrieval.MODEL_DIGEST: [metadata["model_digest"]]},
    )
    assert answer[retrieval.ROW][0, :5].tolist() == [match.row for match in found]
    with pytest.raises(RequestError, match="must be that of this index") as caught:
        asked.predict(
            retrieval.RETRIEVE,
            {retrieval.EMBEDDING: vectors, retrieval.MODEL_DIGEST: ["another"]},
        )
    assert caught.value.code == "INVALID_ARGUMENT"
    digest = metadata["model_digest"]
    for bad, digests, message in (
        (np.full_like(vectors, np.nan), [digest], "finite and not zero"),
        (np.zeros_like(vectors), [digest], "finite and not zero"),
        (vectors, [], "a row for each embedding"),
        (np.repeat(vectors, 3, axis=0), [digest], "a row for each embedding"),
        (np.repeat(vectors, 257, axis=0), [digest] * 257, "may have 256 rows"),
        (np.repeat(vectors, 1025, axis=0), [digest] * 1025, "may have 1024 items"),
    ):
        with pytest.raises(RequestError, match=message) as caught:
            asked.predict(
                retrieval.RETRIEVE, {retrieval.EMBEDDING: bad, retrieval.MODEL_DIGEST: digests}
            )
        assert caught.value.code == "INVALID_ARGUMENT"
    # Vectors may have any length that 32 bits hold.
    for factor in (1e-30, 1e30):
        answer = asked.predict(
            retrieval.RETRIEVE,
            {retrieval.EMBEDDING: vectors * np.float32(factor), retrieval.MODEL_DIGEST: [digest]},
        )
        assert answer[retrieval.ROW][0, :5].tolist() == [match.row for match in found]


def test_texts_of_many_clients_are_merged(server):
    import concurrent.futures

    served = ServedIndex(server.address)
    texts = [f"a {color} star" for color in ("red", "green", "blue", "white")] * 8
    alone = [served.by_text(text, top=3) for text in texts[:4]] * 8
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda text: served.by_text(text, top=3), texts))
    for one, other in zip(alone, together, strict=True):
        assert [x.score for x in one] == pytest.approx([x.score for x in other], abs=1e-5)


def test_loader_of_tf_serving_runs_every_signature(index):
    done = subprocess.run(
        [sys.executable, "-m", "sigline.serving.checks.loader_check", str(index)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(json.loads(done.stdout.splitlines()[-1])) == [
        retrieval.RETRIEVE,
        retrieval.RETRIEVE_IMAGE,
        retrieval.RETRIEVE_TEXT,
    ]


def test_command_searches_a_folder_and_a_server(server, index, capsys, tmp_path, scene_records):
    assert cli.main(["search", "--index", str(index), "--top", "3", "a red square"]) == 0
    local = capsys.readouterr().out.splitlines()
    assert len(local) == 3
    assert "scenes/" in local[0]
    arguments = ["search", "--target", server.address, "--top", "3", "--json", "a red square"]
    assert cli.main(arguments) == 0
    served = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [f"{x['source']}/{x['key']}" for x in served] == [x.split()[1] for x in local]
    image = tmp_path / "asked.png"
    image.write_bytes(scene_records[0].image)
    assert cli.main(["search", "--index", str(index), "--image", str(image), "--top", "1"]) == 0
    assert capsys.readouterr().out.startswith("  1.0000")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--index", "{index}"], 2, "Give either TEXT or --image FILE"),
        (["--index", "{index}", "--top", "13", "a star"], 2, "top must be 1 to 12"),
        (["--target", "{server}", "--top", "13", "a star"], 2, "top must be 1 to 12"),
        (["--index", "{index}", "--image", "{index}/saved_model.pb"], 2, "JPEG or PNG"),
        (["--target", "{server}", "--model-name", "x", "a star"], 1, "NOT_FOUND"),
        (["--index", "{index}/variables", "a star"], 2, "There is no index"),
    ],
)
def test_mistakes_are_one_line(server, index, capsys, arguments, code, message):
    filled = [text.format(index=index, server=server.address) for text in arguments]
    assert cli.main(["search", *filled]) == code
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert message in errors[0]


def test_faiss_index_needs_the_model_that_made_it(
    tmp_path, contract_base, contract_config, examples, vocabulary, capsys
):
    from sigline.trainer import config
    from sigline.trainer.export import saved_model
    from sigline.trainer.models import two_tower

    model = contract_base / "3"
    arguments = ["--model", model, "--data", examples, "--split", "train", "--kind", "faiss"]
    assert cli.main(["index", *map(str, arguments), "--output", str(tmp_path / "index")]) == 0
    assert "recall@10 of 47 captions 1.0000" in capsys.readouterr().out
    search = ["search", "--index", str(tmp_path / "index"), "a red square", "--top", "100"]
    assert cli.main([*search, "--model", str(model)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 100
    assert cli.main(search) == 2
    assert "needs the model that made it" in capsys.readouterr().err
    other = config.override(contract_config, ["seed=7"])
    saved_model.export(
        tmp_path / "other", two_tower.build(other), config=other, vocabulary=vocabulary
    )
    assert cli.main([*search, "--model", str(tmp_path / "other")]) == 2
    assert "made with another model" in capsys.readouterr().err
    with open(tmp_path / "index" / retrieval.FAISS_FILE, "r+b") as handle:
        handle.seek(200)
        handle.write(b"\xff")
    assert cli.main([*search, "--model", str(model)]) == 2
    assert "damaged" in capsys.readouterr().err


def test_server_embeds_texts_and_images_into_a_file(server, tmp_path, capsys, scene_records):
    texts = tmp_path / "texts.txt"
    # No line ends at the second character.
    texts.write_text("a\u2028 red square\nein grüner Stern\n", "utf-8")
    base = ["embed", "--target", server.address, "--output", str(tmp_path / "vectors.npz")]
    assert cli.main([*base, "--texts", str(texts)]) == 0
    with np.load(tmp_path / "vectors.npz") as found:
        expected = Client(server.address).embed_texts(["a\u2028 red square", "ein grüner Stern"])
        np.testing.assert_allclose(found["embedding"], expected, atol=1e-6)
    images = tmp_path / "images"
    images.mkdir()
    (images / "b.png").write_bytes(scene_records[0].image)
    (images / "a.png").write_bytes(b"broken")
    assert cli.main([*base, "--images", str(images)]) == 0
    captured = capsys.readouterr()
    assert "skipped, no image that the model reads" in captured.err
    with np.load(tmp_path / "vectors.npz") as found:
        assert found["name"].tolist() == ["b.png"]
        assert found["embedding"].shape[0] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "images",
        "texts.txt",
        "vectors.npz",
    ]
