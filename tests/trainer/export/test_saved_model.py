import io
import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from sigline.components.scenes import grammar
from sigline.schemas import signatures
from sigline.schemas.labels import LabelSet
from sigline.trainer import config
from sigline.trainer.export import saved_model
from sigline.trainer.inputs import preprocess
from sigline.trainer.models import two_tower

TEXTS = ["a red ring", "", "A small GREEN cross, left of a blue star!", "日本語"]


@pytest.fixture(scope="module")
def tiny():
    tiny = config.tiny(config.load_recipe("siglip_demo"))
    return config.override(tiny, ["image.depth=1", "text.depth=1"])


@pytest.fixture(scope="module")
def model(tiny):
    return two_tower.build(tiny)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, model, tiny, vocabulary):
    directory = tmp_path_factory.mktemp("export") / "model"
    labels = grammar.label_set()
    saved_model.export(directory, model, config=tiny, vocabulary=vocabulary, labels=labels)
    return directory


@pytest.fixture(scope="module")
def loaded(exported):
    return tf.saved_model.load(str(exported))


@pytest.fixture(scope="module")
def images(scene_records):
    return [item.image for item in scene_records[:5]]


def _run(loaded, signature, **inputs):
    return loaded.signatures[signature](**{k: tf.constant(v) for k, v in inputs.items()})


def test_image_embeddings_equal_the_trainers(loaded, model, tiny, images):
    pixels = [preprocess.load_image(tf.constant(x), tiny.image, max_pixels=10**6) for x in images]
    expected = model.embed_image(preprocess.to_model_range(tf.stack(pixels), tiny.image))
    for signature in (signatures.SERVING_DEFAULT, signatures.EMBED_IMAGE):
        found = _run(loaded, signature, image_bytes=images)[signatures.EMBEDDING]
        assert found.dtype == tf.float32
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_text_embeddings_equal_the_trainers(loaded, model, tiny, vocabulary):
    tokenizer = preprocess.Tokenizer(vocabulary, tiny.text)
    expected = model.embed_text(tokenizer(tf.constant(TEXTS)))
    found = _run(loaded, signatures.EMBED_TEXT, text=TEXTS)[signatures.EMBEDDING]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_model_trained_in_bfloat16_is_served_in_float32(tmp_path, tiny, vocabulary, images):
    settings = config.override(tiny, ["precision=bfloat16", "rematerialize=true"])
    trained = two_tower.build(settings)
    saved_model.export(tmp_path / "m", trained, config=settings, vocabulary=vocabulary)
    served = tf.saved_model.load(str(tmp_path / "m"))
    found = _run(served, signatures.EMBED_IMAGE, image_bytes=images)[signatures.EMBEDDING]
    pixels = [preprocess.load_image(tf.constant(x), tiny.image, max_pixels=10**6) for x in images]
    pixels = preprocess.to_model_range(tf.stack(pixels), tiny.image)
    # The same seed gives a float32 model of the same weights.
    np.testing.assert_allclose(found, two_tower.build(tiny).embed_image(pixels), atol=1e-6)
    assert np.abs(found - trained.embed_image(pixels)).max() > 1e-5


def test_softmax_model_is_served_with_softmax_probabilities(tmp_path, tiny, vocabulary, images):
    settings = config.override(tiny, ["objectives.pairs.loss=softmax"])
    model = two_tower.build(settings)
    labels = grammar.label_set()
    saved_model.export(tmp_path / "m", model, config=settings, vocabulary=vocabulary, labels=labels)
    served = tf.saved_model.load(str(tmp_path / "m"))
    found = _run(served, signatures.SIMILARITY, image_bytes=images, text=TEXTS)
    np.testing.assert_allclose(np.sum(found[signatures.PROBABILITIES], axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(
        found[signatures.PROBABILITIES], tf.nn.softmax(found[signatures.LOGITS]), rtol=1e-5
    )
    assert float(model.bias.value) == 0.0


def test_similarity_is_the_sigmoid_of_scaled_products(loaded, tiny, images):
    image = _run(loaded, signatures.EMBED_IMAGE, image_bytes=images)[signatures.EMBEDDING]
    text = _run(loaded, signatures.EMBED_TEXT, text=TEXTS)[signatures.EMBEDDING]
    logits = tiny.similarity.temperature_init * image.numpy() @ text.numpy().T + tiny.bias_init
    found = _run(loaded, signatures.SIMILARITY, image_bytes=images, text=TEXTS)
    np.testing.assert_allclose(found[signatures.LOGITS], logits, atol=1e-4)
    np.testing.assert_allclose(
        found[signatures.PROBABILITIES], 1 / (1 + np.exp(-logits)), atol=1e-6
    )


def test_classify_ranks_the_label_set(loaded, tiny, images):
    labels = grammar.label_set()
    means = []
    for prompts in labels.prompts():
        vectors = _run(loaded, signatures.EMBED_TEXT, text=prompts)[signatures.EMBEDDING].numpy()
        means.append(vectors.mean(axis=0) / np.linalg.norm(vectors.mean(axis=0)))
    image = _run(loaded, signatures.EMBED_IMAGE, image_bytes=images)[signatures.EMBEDDING].numpy()
    logits = tiny.similarity.temperature_init * image @ np.array(means).T + tiny.bias_init
    found = _run(loaded, signatures.CLASSIFY, image_bytes=images)
    best = np.sort(1 / (1 + np.exp(-logits)), axis=1)[:, ::-1][:, :5]
    np.testing.assert_allclose(found[signatures.SCORES], best, atol=1e-5)
    assert {name.decode() for name in found[signatures.CLASSES].numpy().ravel()} <= set(
        labels.names
    )


def test_one_bad_image_fails_a_strict_request(loaded, images):
    with pytest.raises(tf.errors.InvalidArgumentError, match="only JPEG and PNG"):
        _run(loaded, signatures.EMBED_IMAGE, image_bytes=[images[0], b"bad"])


def test_bad_images_do_not_touch_good_ones_in_a_safe_request(loaded, images):
    mixed = [b"", images[0], b"\xff\xd8\xff", images[1], images[2][:100]]
    found = _run(loaded, signatures.EMBED_IMAGE_SAFE, image_bytes=mixed)
    assert found[signatures.VALID].numpy().tolist() == [False, True, False, True, False]
    embedding = found[signatures.EMBEDDING].numpy()
    good = _run(loaded, signatures.EMBED_IMAGE, image_bytes=images[:2])[signatures.EMBEDDING]
    np.testing.assert_allclose(embedding[[1, 3]], good, atol=1e-6)
    assert not embedding[[0, 2, 4]].any()


def test_safe_request_of_bad_images_only_is_answered(loaded):
    found = _run(loaded, signatures.EMBED_IMAGE_SAFE, image_bytes=[b"x", b"y"])
    assert not found[signatures.VALID].numpy().any()


def test_transparent_image_is_served_as_on_white(loaded):
    rgba = Image.new("RGBA", (20, 20), (255, 0, 0, 255))
    rgba.paste((0, 0, 0, 0), (0, 0, 10, 20))
    white = Image.new("RGB", (20, 20), (255, 0, 0))
    white.paste((255, 255, 255), (0, 0, 10, 20))
    encoded = []
    for image in (rgba, white):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    one, other = _run(loaded, signatures.EMBED_IMAGE, image_bytes=encoded)[signatures.EMBEDDING]
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_every_weight_is_stored_once(exported, model):
    from sigline.trainer.models.two_tower import named_variables

    stored = sum(path.stat().st_size for path in (exported / "variables").glob("*.data*"))
    needed = sum(4 * int(np.prod(v.shape)) for v in named_variables(model).values())
    assert needed < stored < 1.1 * needed


def test_graph_has_no_python_and_is_not_compiled_by_xla(loaded, exported):
    from tensorflow.core.protobuf import saved_model_pb2

    graph = saved_model_pb2.SavedModel.FromString((exported / "saved_model.pb").read_bytes())
    functions = graph.meta_graphs[0].graph_def.library.function
    operations = {node.op for function in functions for node in function.node_def}
    assert not operations & {"PyFunc", "EagerPyFunc", "XlaLaunch", "ReadFile"}
    assert not any(f.attr["_XlaMustCompile"].b for f in functions if "_XlaMustCompile" in f.attr)


def test_metadata_tells_what_the_model_is(exported, tiny):
    assets = exported / signatures.ASSETS_DIR
    metadata = json.loads((assets / signatures.METADATA_FILE).read_text())
    assert metadata["temperature"] == pytest.approx(10.0)
    assert metadata["image_size"] == tiny.image.size
    assert len(metadata["model_digest"]) == 64
    assert config.from_json((assets / signatures.CONFIG_FILE).read_text()) == tiny
    labels = LabelSet.from_json((assets / signatures.LABELS_FILE).read_text())
    assert labels == grammar.label_set()


@pytest.mark.parametrize("text", [True, False], ids=["two towers", "images alone"])
def test_head_classifies(tmp_path, tiny, few_parameters, vocabulary, images, text):
    changes = [*few_parameters, "image.classes=3"]
    if not text:
        changes += ["text=none", 'objectives=[{"kind": "distill", "teacher": "a"}]']
    settings = config.override(tiny, changes)
    model = two_tower.build(settings)
    kernel = model.image.head.kernel
    kernel.assign(tf.random.stateless_normal(kernel.shape, (0, 1)))
    vocabulary = vocabulary if text else None
    options = {"config": settings, "vocabulary": vocabulary}
    saved_model.export(tmp_path / "named", model, labels=LabelSet(("a", "b", "c")), **options)
    saved_model.export(tmp_path / "numbered", model, **options)
    pixels = [preprocess.load_image(tf.constant(x), tiny.image, max_pixels=10**6) for x in images]
    said = model.look(preprocess.to_model_range(tf.stack(pixels), tiny.image))
    expected = tf.nn.softmax(said["classes"]).numpy()
    for name, names in (("named", "abc"), ("numbered", "012")):
        loaded = tf.saved_model.load(str(tmp_path / name))
        assert (signatures.EMBED_TEXT in loaded.signatures) == text
        found = _run(loaded, signatures.CLASSIFY, image_bytes=images)
        best = [names[i].encode() for i in expected.argmax(1)]
        assert found[signatures.CLASSES][:, 0].numpy().tolist() == best
        np.testing.assert_allclose(found[signatures.SCORES][:, 0], expected.max(1), atol=1e-5)
    with pytest.raises(ValueError, match=r"as many classes as the model's head.*classes=2"):
        saved_model.export(tmp_path / "wrong", model, labels=LabelSet(("a", "b")), **options)


def test_model_without_labels_has_no_classify(tmp_path, model, tiny, vocabulary):
    saved_model.export(tmp_path / "m", model, config=tiny, vocabulary=vocabulary)
    assert signatures.CLASSIFY not in tf.saved_model.load(str(tmp_path / "m")).signatures


def test_existing_directory_is_not_overwritten(tmp_path, model, tiny, vocabulary):
    with pytest.raises(ValueError, match="must not exist yet"):
        saved_model.export(tmp_path, model, config=tiny, vocabulary=vocabulary)


def _loader_check(directory):
    command = [sys.executable, "-m", "sigline.serving.checks.loader_check", str(directory)]
    return subprocess.run(command, capture_output=True, text=True)


def test_tf_servings_loader_runs_every_signature_without_xla(exported):
    done = _loader_check(exported)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {
        signatures.SERVING_DEFAULT,
        signatures.EMBED_IMAGE,
        signatures.EMBED_IMAGE_SAFE,
        signatures.EMBED_TEXT,
        signatures.SIMILARITY,
        signatures.CLASSIFY,
    }


def test_tf_servings_loader_finds_a_keras_object_in_the_trackable_graph(tmp_path):
    # The trap that the export avoids: such a model loads in Python and fails in TF Serving.
    import keras

    class Broken(tf.Module):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(4)
            self.dense.build((None, 1))

        @tf.function(
            input_signature=[tf.TensorSpec((None,), tf.string, name="text")], autograph=False
        )
        def embed_text(self, text):
            length = tf.cast(tf.strings.length(text), tf.float32)[:, None]
            return {"embedding": self.dense(length)}

    module = Broken()
    tf.saved_model.save(module, str(tmp_path / "m"), signatures={"embed_text": module.embed_text})
    done = _loader_check(tmp_path / "m")
    assert done.returncode != 0
    assert "Could not find variable" in done.stderr


# What TF Serving links beside TensorFlow's own operations (its `model_servers/BUILD`: the whole of
# TensorFlow Text), of which the export uses these.
LINKED = {"SentencepieceOp", "SentencepieceTokenizeOp"}


def test_graph_has_only_operations_that_tf_serving_links(exported):
    code = (
        "import sys, tensorflow as tf\n"
        "from tensorflow.core.protobuf import saved_model_pb2\n"
        "model = saved_model_pb2.SavedModel.FromString(open(sys.argv[1], 'rb').read())\n"
        "graph = model.meta_graphs[0].graph_def\n"
        "nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]\n"
        "functions = {f.signature.name for f in graph.library.function}\n"
        # Without TensorFlow Text: what is left is not TensorFlow's own.
        "from tensorflow.python.framework import op_def_registry\n"
        "print(*sorted({n.op for n in nodes if n.op not in functions "
        "and op_def_registry.get(n.op) is None}))\n"
    )
    command = [sys.executable, "-c", code, str(exported / "saved_model.pb")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == LINKED
