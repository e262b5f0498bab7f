"""Exports a trained model as the SavedModel of the model contract.

The exported object tracks raw variables only. Keras objects in the trackable graph load in Python
but not in TF Serving's C++ loader: a Keras variable exports itself as a new variable, which restore
then fills instead of the one that the signatures read. Nothing is `jit_compile`d, which the
stock server refuses.
"""

import hashlib
import json
import types
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import tensorflow as tf

import sigline
from sigline.schemas import atomic, digests, signatures, strict
from sigline.schemas.labels import LabelSet
from sigline.trainer.config import ImageTowerConfig, TrainConfig
from sigline.trainer.export import seldom_called
from sigline.trainer.inputs import preprocess
from sigline.trainer.models import two_tower
from sigline.trainer.models.two_tower import TwoTower, named_variables

_TOP_CLASSES = 5
_DECODES_IN_FLIGHT = 2
# Fields that stand in the digest of an image tower whatever their values. Those that came later
# stand there if they differ from their defaults: what was embedded before them stays valid.
_ALWAYS = frozenset(
    [
        "size",
        "patch",
        "width",
        "depth",
        "mlp_dim",
        "num_heads",
        "pool",
        "positions",
        "num_registers",
        "embedding_norm",
        "patch_bias",
        "projection",
        "projection_bias",
        "resize",
        "interpolation",
        "antialias",
        "mean",
        "std",
        "block",
    ]
)
_ALWAYS_OF_BLOCKS = frozenset(
    ["activation", "norm_epsilon", "norm_bias", "qkv_bias", "mlp_bias", "qk_norm", "parallel"]
)
# What is dropped in training changes no answer, nor does the head, which reads the embedding.
_NO_ANSWER = frozenset({"token_dropout", "classes", "head_bias_init"})
_NO_ANSWER_OF_BLOCKS = frozenset({"dropout", "stochastic_depth"})


class ServedImageTower(tf.Module):
    """An image tower that is saved: bytes in, float32 out."""

    def __init__(self, model: TwoTower, config: TrainConfig):
        """Binds the encoder to the model's variables."""
        super().__init__()
        # A tf.Module tracks attributes that are trackable, also in lists and dictionaries. What
        # sits in a SimpleNamespace stays out of the object graph.
        self._plain = types.SimpleNamespace(model=model, config=config)
        size = config.image.size
        self.image_encoder = tf.function(
            lambda pixels: self._plain.model.embed_image(
                preprocess.to_model_range(pixels, config.image)
            ),
            input_signature=[tf.TensorSpec((None, size, size, 3), tf.uint8)],
            autograph=False,
        )
        variables = named_variables(model)
        self.variables_to_save = [v for n, v in variables.items() if n.startswith("image/")]

    @tf.function(
        input_signature=[tf.TensorSpec((None,), tf.string, name=signatures.IMAGE_BYTES)],
        autograph=False,
    )
    def embed_image(self, image_bytes):
        """Embeds encoded images; one that does not decode fails the request."""
        return {signatures.EMBEDDING: self.image_encoder(self._load(image_bytes))}

    @tf.function(
        input_signature=[tf.TensorSpec((None,), tf.string, name=signatures.IMAGE_BYTES)],
        autograph=False,
    )
    def embed_image_safe(self, image_bytes):
        """Embeds encoded images; one that does not decode gets zeros and `valid` False."""
        pixels, valid = self._load_valid(image_bytes)
        embedding = tf.where(valid[:, None], self.image_encoder(pixels), 0.0)
        return {signatures.EMBEDDING: embedding, signatures.VALID: valid}

    def signatures(self) -> dict[str, Any]:
        """Returns the signatures by name."""
        return {
            signatures.SERVING_DEFAULT: self.embed_image,
            signatures.EMBED_IMAGE: self.embed_image,
            signatures.EMBED_IMAGE_SAFE: self.embed_image_safe,
        }

    def encoders(self) -> dict[str, Any]:
        """Returns the parts that Google's TPU converter may move to the TPU, by name."""
        return {"image_encoder": self.image_encoder}

    @tf.autograph.experimental.do_not_convert
    def _load_one(self, encoded):
        config = self._plain.config
        return preprocess.load_image(encoded, config.image, max_pixels=config.data.max_image_pixels)

    def _load(self, image_bytes):
        size = self._plain.config.image.size
        spec = tf.TensorSpec((size, size, 3), tf.uint8)
        return tf.map_fn(
            self._load_one,
            image_bytes,
            fn_output_signature=spec,
            # Each image in flight may be decoded to the largest size allowed.
            parallel_iterations=_DECODES_IN_FLIGHT,
        )

    def _load_valid(self, image_bytes):
        """Decodes what can be decoded: pixels with zeros for the rest, and which are valid."""
        size = self._plain.config.image.size
        count = tf.shape(image_bytes)[0]
        good = (
            tf.data.Dataset.from_tensor_slices((tf.range(count), image_bytes))
            .map(lambda i, item: (i, self._load_one(item)), num_parallel_calls=_DECODES_IN_FLIGHT)
            .ignore_errors()
        )
        # A sentinel behind the last row, so that the set is never empty.
        sentinel = tf.data.Dataset.from_tensors((count, tf.zeros((size, size, 3), tf.uint8)))
        total = tf.cast(count, tf.int64) + 1
        rows, pixels = good.concatenate(sentinel).batch(total).get_single_element()
        shape = (count + 1, size, size, 3)
        # Integer scatter of 8 bits is not supported everywhere.
        pixels = tf.scatter_nd(rows[:, None], tf.cast(pixels, tf.int32), shape)[:count]
        valid = tf.scatter_nd(rows[:, None], tf.ones_like(rows), (count + 1,))[:count] > 0
        return tf.ensure_shape(tf.cast(pixels, tf.uint8), (None, size, size, 3)), valid


class _Headed(ServedImageTower):
    """What has a head, and answers `classify` by it."""

    def name_classes(self, labels: LabelSet | None) -> None:
        """Names the classes: by the label set, else by their numbers."""
        count = self._plain.config.image.classes
        names = labels.names if labels else tuple(str(i) for i in range(count or 0))
        if len(names) != count:
            raise ValueError(
                "The label set must have as many classes as the model's head. "
                f"Received: classes={len(names)}, image.classes={count}"
            )
        self.class_names = tf.constant(names)

    @tf.function(
        input_signature=[tf.TensorSpec((None,), tf.string, name=signatures.IMAGE_BYTES)],
        autograph=False,
    )
    def classify(self, image_bytes):
        """Classifies images by the head: the best class names and their probabilities."""
        image = self._plain.config.image
        pixels = preprocess.to_model_range(self._load(image_bytes), image)
        logits = self._plain.model.look(pixels)[two_tower.CLASSES]
        return _best_classes(tf.nn.softmax(logits), self.class_names)

    def signatures(self) -> dict[str, Any]:
        """Returns the signatures by name."""
        return super().signatures() | {signatures.CLASSIFY: self.classify}


class ServedClassifier(_Headed):
    """An image tower with a head that is saved."""


def _best_classes(probabilities: tf.Tensor, names: tf.Tensor) -> dict[str, tf.Tensor]:
    count = names.shape[0] or 0
    scores, ids = tf.math.top_k(probabilities, k=min(_TOP_CLASSES, count))
    return {signatures.CLASSES: tf.gather(names, ids), signatures.SCORES: scores}


class ServedModel(ServedImageTower):
    """The object that is saved: bytes and strings in, float32 out."""

    def __init__(self, model: TwoTower, tokenizer: preprocess.Tokenizer, config: TrainConfig):
        """Binds the encoders to the model's variables."""
        super().__init__(model, config)
        assert config.text is not None
        self.tokenizer = tokenizer
        self.text_encoder = tf.function(
            lambda ids: self._plain.model.embed_text(ids),
            input_signature=[tf.TensorSpec((None, config.text.length), tf.int32)],
            autograph=False,
        )
        self.variables_to_save = list(named_variables(model).values())

    def encoders(self) -> dict[str, Any]:
        """Returns the parts that Google's TPU converter may move to the TPU, by name."""
        return super().encoders() | {"text_encoder": self.text_encoder}

    @tf.function(
        input_signature=[tf.TensorSpec((None,), tf.string, name=signatures.TEXT)],
        autograph=False,
    )
    def embed_text(self, text):
        """Embeds texts."""
        return {signatures.EMBEDDING: self.text_encoder(self.tokenizer(text))}

    @tf.function(
        input_signature=[
            tf.TensorSpec((None,), tf.string, name=signatures.IMAGE_BYTES),
            tf.TensorSpec((None,), tf.string, name=signatures.TEXT),
        ],
        autograph=False,
    )
    def similarity(self, image_bytes, text):
        """Compares every image with every text: logits and probabilities `(images, texts)`."""
        image = self.embed_image(image_bytes)[signatures.EMBEDDING]
        logits = self._logits(image, self.embed_text(text)[signatures.EMBEDDING])
        return {signatures.LOGITS: logits, signatures.PROBABILITIES: self._probabilities(logits)}

    def signatures(self) -> dict[str, Any]:
        """Returns the signatures by name."""
        return super().signatures() | {
            signatures.EMBED_TEXT: self.embed_text,
            signatures.SIMILARITY: self.similarity,
        }

    def _logits(self, image, text):
        model = self._plain.model
        scores = tf.matmul(image, text, transpose_b=True)
        return tf.exp(model.log_temperature.value) * scores + model.bias.value

    def _probabilities(self, logits):
        """Returns what the loss trained: of each pair, or by softmax of the texts of an image."""
        softmax = self._plain.config.pair_loss == "softmax"
        return tf.nn.softmax(logits) if softmax else tf.sigmoid(logits)


class ClassifyingModel(ServedModel):
    """A served model with a label set, embedded at export."""

    def __init__(
        self,
        model: TwoTower,
        tokenizer: preprocess.Tokenizer,
        config: TrainConfig,
        labels: LabelSet,
    ):
        """Embeds the label set."""
        super().__init__(model, tokenizer, config)
        embeddings = two_tower.embed_classes(
            lambda texts: self.text_encoder(self.tokenizer(texts)), labels
        )
        self.class_embeddings = tf.Variable(embeddings, trainable=False)
        self.class_names = tf.constant(labels.names)

    @tf.function(
        input_signature=[tf.TensorSpec((None,), tf.string, name=signatures.IMAGE_BYTES)],
        autograph=False,
    )
    def classify(self, image_bytes):
        """Classifies images against the label set: the best class names and their probabilities."""
        image = self.embed_image(image_bytes)[signatures.EMBEDDING]
        logits = self._logits(image, tf.convert_to_tensor(self.class_embeddings))
        return _best_classes(self._probabilities(logits), self.class_names)

    def signatures(self) -> dict[str, Any]:
        """Returns the signatures by name."""
        return super().signatures() | {signatures.CLASSIFY: self.classify}


class HeadedModel(_Headed, ServedModel):
    """Two towers of which the image tower has a head, too."""


def model_digest(
    model: TwoTower, config: TrainConfig, vocabulary: bytes | None, labels: LabelSet | None
) -> str:
    """Returns the digest of all that decides the answers: weights, config, vocabulary, labels."""
    return digests.json_digest(
        {
            "weights": _weight_digests(model, ""),
            "config": config.digest(),
            "vocabulary": hashlib.sha256(vocabulary).hexdigest() if vocabulary else None,
            "labels": labels.to_json() if labels else None,
        }
    )


def image_digest(model: TwoTower) -> str:
    """Returns the digest of all that decides embeddings of images: weights and configuration."""
    weights = _weight_digests(model, "image/")
    tower = {name: value for name, value in weights.items() if not name.startswith("image/head/")}
    return digests.json_digest([tower, answering(model.config.image)])


def answering(config: ImageTowerConfig) -> dict[str, Any]:
    """Returns what of an image tower's configuration decides embeddings, as its digest has it."""
    fields = _answering(config, _ALWAYS, _NO_ANSWER)
    fields["block"] = _answering(config.block, _ALWAYS_OF_BLOCKS, _NO_ANSWER_OF_BLOCKS)
    return fields


def _answering(config: Any, always: Set[str], never: Set[str]) -> dict[str, Any]:
    """Returns the fields of a configuration that decide answers, as they stand in a digest."""
    different = strict.changed(config)
    fields = strict.to_dict(config)
    names = (always | different.keys()) - never
    return {name: value for name, value in fields.items() if name in names}


def _weight_digests(model: TwoTower, prefix: str) -> dict[str, Any]:
    found = {}
    for name, variable in named_variables(model).items():
        if name.startswith(prefix):
            value = variable.numpy()
            digest = hashlib.sha256(value.tobytes()).hexdigest()
            found[name] = [str(value.dtype), value.shape, digest]
    return found


def export(
    directory: str | Path,
    model: TwoTower,
    *,
    config: TrainConfig,
    vocabulary: bytes | None,
    labels: LabelSet | None = None,
    provenance: dict[str, str] | None = None,
    tokenizer: Mapping[str, bytes] | None = None,
) -> dict[str, Any]:
    """Writes the SavedModel; the directory appears whole or not at all.

    Args:
        directory: Where the SavedModel goes; must not exist.
        model: The trained model.
        config: The configuration it was trained with.
        vocabulary: The serialized SentencePiece model it was trained with; None for a model of
            images alone.
        labels: Classes and prompts for `classify`; without them a head has numbers for names.
        provenance: What else to record, such as digests of data and code.
        tokenizer: Files of the vocabulary in the form that it was imported in, by name.

    Returns:
        The metadata that is written to `assets.extra/sigline.json`.
    """
    directory = _new(directory)
    model = two_tower.for_serving(model)
    metadata = {"model_digest": model_digest(model, config, vocabulary, labels)}
    assets = {}
    if config.text is None:
        has_head = config.image.classes is not None
        served = ServedClassifier(model, config) if has_head else ServedImageTower(model, config)
    else:
        if vocabulary is None:
            raise ValueError("A model with a text tower needs a vocabulary. Received: none")
        served = _served_pair(model, preprocess.Tokenizer(vocabulary, config.text), config, labels)
        metadata |= {
            "vocabulary_digest": hashlib.sha256(vocabulary).hexdigest(),
            "text_length": config.text.length,
            "temperature": float(tf.exp(model.log_temperature.value)),
            "bias": float(model.bias.value),
        }
        assets[signatures.VOCABULARY_FILE] = vocabulary
        for name, content in (tokenizer or {}).items():
            assets[f"{signatures.TOKENIZER_FOLDER}/{name}"] = content
    if isinstance(served, _Headed):
        served.name_classes(labels)
    metadata = _metadata(served, model, config) | metadata | (provenance or {})
    if labels is not None:
        assets[signatures.LABELS_FILE] = labels.to_json().encode()
    _save(directory, served, metadata, config, assets)
    return metadata


def _served_pair(
    model: TwoTower,
    tokenizer: preprocess.Tokenizer,
    config: TrainConfig,
    labels: LabelSet | None,
) -> ServedModel:
    if config.image.classes is not None:
        return HeadedModel(model, tokenizer, config)
    if labels is None:
        return ServedModel(model, tokenizer, config)
    return ClassifyingModel(model, tokenizer, config, labels)


def export_image_tower(
    directory: str | Path, model: TwoTower, *, config: TrainConfig
) -> dict[str, Any]:
    """Writes a SavedModel of the image tower alone; the directory appears whole or not at all.

    Args:
        directory: Where the SavedModel goes; must not exist.
        model: The model.
        config: Its configuration.

    Returns:
        The metadata that is written to `assets.extra/sigline.json`.
    """
    directory = _new(directory)
    model = two_tower.for_serving(model)
    served = ServedImageTower(model, config)
    metadata = _metadata(served, model, config)
    _save(directory, served, metadata, config, {})
    return metadata


def _new(directory: str | Path) -> Path:
    directory = Path(directory)
    if directory.exists():
        raise ValueError(f"directory must not exist yet. Received: directory={directory}")
    return directory


def _metadata(served: ServedImageTower, model: TwoTower, config: TrainConfig) -> dict[str, Any]:
    return {
        "sigline_version": sigline.__version__,
        "config_digest": config.digest(),
        "image_digest": image_digest(model),
        "recipe": config.name,
        "image_size": config.image.size,
        "embedding_dim": config.image.output_dim,
        "num_parameters": sum(int(v.shape.num_elements()) for v in served.variables_to_save),
    }


def _save(
    directory: Path,
    served: ServedImageTower,
    metadata: dict[str, Any],
    config: TrainConfig,
    assets: dict[str, bytes],
) -> None:
    assets = assets | {
        signatures.METADATA_FILE: json.dumps(metadata, indent=1, sort_keys=True).encode(),
        signatures.CONFIG_FILE: config.to_json().encode(),
    }
    with atomic.new_folder(directory) as scratch:
        tf.saved_model.save(
            served,
            str(scratch),
            signatures=served.signatures(),
            options=tf.saved_model.SaveOptions(function_aliases=served.encoders()),
        )
        seldom_called.mark(scratch)
        folder = scratch / signatures.ASSETS_DIR
        folder.mkdir(exist_ok=True)
        for name, content in assets.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
