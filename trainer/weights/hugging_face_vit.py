"""ViT (arXiv 2010.11929) and DeiT (arXiv 2012.12877) in the format of Hugging Face.

`ViTForImageClassification`, `DeiTForImageClassification`, `DeiTForImageClassificationWithTeacher`,
and both without a head. All pool the class token. A DeiT has a second token in the sequence:

- With a teacher it has a head, too: ours is `image.distillation_token`, and logits are the mean.
- Beside a head of the class token alone, nothing reads it. Attention knows no order, so it is a
  register of ours, with its position added, and the answers are the same.
"""

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from sigline.schemas.labels import LabelSet
from sigline.trainer.config import (
    ClassifyConfig,
    DistillConfig,
    ImageTowerConfig,
    PairsConfig,
    TextTowerConfig,
    TrainConfig,
)
from sigline.trainer.weights import hugging_face, processor
from sigline.trainer.weights.hugging_face_links import dense, layer_norm, patches
from sigline.trainer.weights.links import Link, Tensors, same

KINDS = ("vit", "deit")
_HEAD, _TEACHER_HEADS = "classifier", ("cls_classifier", "distillation_classifier")
# Sets of heads that a model may have.
_HEADS: dict[str, tuple[tuple[str, ...], ...]] = {
    "vit": ((), (_HEAD,)),
    "deit": ((), (_HEAD,), _TEACHER_HEADS),
}
# What `transformers` assumes where a config.json is silent. Its dropout is of training alone.
_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "qkv_bias": True,
}
# A projection with a tanh behind the class token, which no head reads.
POOLER = r"((vit|deit)\.)?pooler\.dense\.(weight|bias)"
# Parts of names as files have them, and as the classes of version 5 name their parameters, by which
# `save_pretrained(save_original_format=False)` writes them.
_NEWER_NAMES = (
    (r"encoder\.layer\.", "layers."),
    (r"attention\.attention\.query", "attention.q_proj"),
    (r"attention\.attention\.key", "attention.k_proj"),
    (r"attention\.attention\.value", "attention.v_proj"),
    (r"attention\.output\.dense", "attention.o_proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
)
# Names that `transformers` gives to classes without names.
_UNNAMED = re.compile(r"LABEL_\d+")


def read_heads(described: dict[str, Any], tensors: Tensors) -> dict[str, int]:
    """Returns the numbers of classes by the heads that a checkpoint has.

    Args:
        described: The content of its `config.json`.
        tensors: Its parameters.

    Raises:
        ValueError: If no model has these heads, or the file names other classes.
    """
    kind = described["model_type"]
    names = [name for name in (_HEAD, *_TEACHER_HEADS) if f"{name}.weight" in tensors]
    if tuple(names) not in _HEADS[kind]:
        allowed = "; ".join(" and ".join(x) or "none" for x in _HEADS[kind])
        raise ValueError(
            f"The heads of a model of model_type {kind} must be one of: {allowed}. "
            f"Leave others out by --drop. Received: {', '.join(names)}"
        )
    counts = {name: len(tensors[f"{name}.weight"]) for name in names}
    if len(set(counts.values())) > 1:
        raise ValueError(f"Both heads must have the same classes. Received: {counts}")
    stated = described.get("id2label")
    if counts and isinstance(stated, dict) and len(stated) not in counts.values():
        raise ValueError(
            "config.json must be that of the weights. Received: "
            f"id2label of {len(stated)} classes, heads of {counts}"
        )
    return counts


def settings(described: dict[str, Any], heads: Mapping[str, int]) -> TrainConfig:
    """Returns a configuration whose model is that of a `config.json`; its training is a default's.

    Pixels are as the model's usual processor makes them. A model without a head is that of an image
    tower alone, beside which a text tower can be trained.

    Args:
        described: The content of the file.
        heads: The result of `read_heads`.

    Raises:
        ValueError: If it describes a model that the tower cannot be.
    """
    kind = described["model_type"]
    theirs = _DEFAULTS | described
    image = hugging_face.image_tower(theirs | {"attention_dropout": 0.0})
    distilled = kind == "deit" and _HEAD not in heads
    classes = next(iter(heads.values()), None)
    image = dataclasses.replace(
        image,
        pool="tok",
        classes=classes,
        distillation_token=distilled,
        num_registers=int(kind == "deit" and not distilled),
        block=dataclasses.replace(image.block, qkv_bias=bool(theirs["qkv_bias"])),
        **processor.fields({}, kind, image.size),
    )
    objectives: tuple[Any, ...] = (PairsConfig(),)
    if classes is not None:
        objectives = (ClassifyConfig(loss=_loss(described, classes)),)
        if distilled:
            objectives += (DistillConfig(teacher="teacher", hard=True),)
    return TrainConfig(
        name=f"{kind}_imported",
        steps=1,
        global_batch_size=1,
        image=image,
        text=TextTowerConfig() if classes is None else None,
        objectives=objectives,
    )


def _loss(described: dict[str, Any], classes: int) -> str:
    """Returns the loss by which logits become probabilities, as the pipelines there have it."""
    problem = described.get("problem_type")
    if problem not in (None, "single_label_classification", "multi_label_classification"):
        raise ValueError(
            "problem_type must be single_label_classification or multi_label_classification. "
            f"Received: problem_type={problem!r}"
        )
    return "sigmoid" if problem == "multi_label_classification" or classes == 1 else "softmax"


def labels(described: dict[str, Any], heads: Mapping[str, int]) -> LabelSet | None:
    """Returns the names of the classes; None for none, or those that `transformers` makes up.

    Names that come more than once, as ImageNet's two cranes, get the number of their class.
    """
    stated = described.get("id2label")
    if not heads or not isinstance(stated, dict):
        return None
    try:
        names = [str(stated[str(i)]).strip() for i in range(len(stated))]
    except KeyError as error:
        raise ValueError(
            f"id2label must name each class from 0 to {len(stated) - 1}. "
            f"Received: no id {error.args[0]}"
        ) from None
    if all(_UNNAMED.fullmatch(name) for name in names):
        return None
    distinct = [f"{x} ({i})" if not x or names.count(x) > 1 else x for i, x in enumerate(names)]
    return LabelSet(tuple(distinct))


def check_shapes(config: TrainConfig, tensors: Tensors, tensor_links: Iterable[Link]) -> None:
    """Raises ValueError if kernels have not the sizes that `config.json` says."""
    image = config.image
    expected = {
        "image/embedding/kernel": (image.width, 3, image.patch, image.patch),
        "image/encoder/block_0/attention/query/kernel": (image.width, image.width),
        "image/encoder/block_0/mlp/up/kernel": (image.mlp_dim, image.width),
    }
    for link in tensor_links:
        shape = expected.get(link.ours[0])
        tensor = tensors.get(link.theirs[0])
        if shape is not None and tensor is not None and tensor.shape != shape:
            raise ValueError(
                f"config.json must be that of the weights: {link.theirs[0]} must have the shape "
                f"{shape}. Received: {tensor.shape}"
            )


def links(config: TrainConfig, names: Collection[str] | None = None) -> list[Link]:
    """Returns how the tensors of a checkpoint are the parameters of a model.

    Args:
        config: The model.
        names: Names in the checkpoint to be read, which tell how it names its parameters; None for
            how `transformers` writes them.
    """
    image, kind = config.image, _kind(config.image)
    prefix = "" if image.classes is None else f"{kind}."
    newer = False
    if names is not None:
        prefix = f"{kind}." if any(name.startswith(f"{kind}.") for name in names) else ""
        newer = any(name.startswith(f"{prefix}layers.") for name in names)
    body = [
        patches(f"{prefix}embeddings.patch_embeddings.projection.weight", image),
        same(f"{prefix}embeddings.patch_embeddings.projection.bias", "image/embedding/bias"),
        _tokens(f"{prefix}embeddings", image),
        *_encoder(prefix, image),
    ]
    if newer:
        body = [link._replace(theirs=tuple(map(_newer_name, link.theirs))) for link in body]
    if image.classes is None:
        return body
    if not image.distillation_token:
        return [*body, *dense(_HEAD, "image/head")]
    own, taught = _TEACHER_HEADS
    return [*body, *dense(own, "image/head"), *dense(taught, "image/head/distilled")]


def _newer_name(name: str) -> str:
    for pattern, replacement in _NEWER_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _tokens(theirs: str, image: ImageTowerConfig) -> Link:
    """Links the tokens before the patches, and the positions of all.

    A token has a position of its own only beside a distillation token; else both are one parameter
    here, and a position of zero is written.
    """
    table = f"{theirs}.position_embeddings"
    own, taught = f"{theirs}.cls_token", f"{theirs}.distillation_token"
    if image.distillation_token:
        return Link(
            (own, taught, table),
            ("image/token", "image/distillation_token", "image/token_positions", "image/positions"),
            lambda token, second, x: (token, second, x[:, :2], x[:, 2:]),
            lambda token, second, first, rest: (token, second, np.concatenate([first, rest], 1)),
        )
    tokens = {own: "image/token"} | ({taught: "image/registers"} if image.num_registers else {})
    count = len(tokens)

    def read(*values):
        *first, x = values
        return [*(token + x[:, i : i + 1] for i, token in enumerate(first)), x[:, count:]]

    def write(*values):
        *first, x = values
        return [*first, np.concatenate([np.zeros_like(x[:, :1])] * count + [x], 1)]

    return Link((*tokens, table), (*tokens.values(), "image/positions"), read, write)


def _encoder(prefix: str, image: ImageTowerConfig) -> list[Link]:
    encoder_links = layer_norm(f"{prefix}layernorm", "image/encoder/norm")
    for i in range(image.depth):
        layer, block = f"{prefix}encoder.layer.{i}", f"image/encoder/block_{i}"
        encoder_links += layer_norm(f"{layer}.layernorm_before", f"{block}/attention_norm")
        encoder_links += layer_norm(f"{layer}.layernorm_after", f"{block}/mlp_norm")
        for name in ("query", "key", "value"):
            encoder_links += dense(
                f"{layer}.attention.attention.{name}",
                f"{block}/attention/{name}",
                bias=image.block.qkv_bias,
            )
        encoder_links += dense(f"{layer}.attention.output.dense", f"{block}/attention/out")
        encoder_links += dense(f"{layer}.intermediate.dense", f"{block}/mlp/up")
        encoder_links += dense(f"{layer}.output.dense", f"{block}/mlp/down")
    return encoder_links


def _kind(image: ImageTowerConfig) -> str:
    """Returns the `model_type`."""
    # A register beside a head is the token that nothing reads in a DeiT of one head.
    distilled = image.distillation_token or (image.num_registers and image.classes is not None)
    return "deit" if distilled else "vit"


def config_json(config: TrainConfig, names: LabelSet | None = None) -> dict[str, Any]:
    """Returns the `config.json` of a model, as `settings` reads it.

    Args:
        config: The model; its text tower is none, or its parameters are not there.
        names: Names of its classes.

    Raises:
        ValueError: If `transformers` has no ViT or DeiT of this tower.
    """
    image = hugging_face.serving(config.image)
    kind, heads = _kind(image), _heads_of(image)
    described = {
        "model_type": kind,
        **hugging_face.their_sizes(image),
        "image_size": image.size,
        "patch_size": image.patch,
        "qkv_bias": image.block.qkv_bias,
        "attention_probs_dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
    }
    written = settings(described, heads).image
    # `transformers` keeps the settings of pixels with the processor, not with the model; the head's
    # first bias is of training alone.
    ours = dataclasses.asdict(image) | {"head_bias_init": 0.0}
    theirs = dataclasses.asdict(written) | {name: ours[name] for name in processor.FIELDS}
    if differences := _differences("image", ours, theirs):
        raise ValueError(
            "transformers' ViT and DeiT have no place for what this image tower is. "
            f"Received: {', '.join(differences)}"
        )
    return described | _classes(config, names) | {"architectures": [_architecture(kind, heads)]}


def _heads_of(image: ImageTowerConfig) -> dict[str, int]:
    if image.classes is None:
        return {}
    return dict.fromkeys(_TEACHER_HEADS if image.distillation_token else (_HEAD,), image.classes)


def _architecture(kind: str, heads: Mapping[str, int]) -> str:
    name = {"vit": "ViT", "deit": "DeiT"}[kind]
    if not heads:
        return f"{name}Model"
    return f"{name}ForImageClassification{'' if _HEAD in heads else 'WithTeacher'}"


def _differences(key: str, ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Returns the settings that differ, and what `transformers` has in their place."""
    differences = []
    for name, value in ours.items():
        if isinstance(value, dict):
            differences += _differences(f"{key}.{name}", value, theirs[name])
        elif value != theirs[name]:
            differences.append(f"{key}.{name}={value!r} (there: {theirs[name]!r})")
    return differences


def _classes(config: TrainConfig, names: LabelSet | None) -> dict[str, Any]:
    """Returns what a `config.json` says of the classes."""
    count = config.image.classes
    if count is None:
        return {}
    texts = names.names if names is not None else tuple(f"LABEL_{i}" for i in range(count))
    if len(texts) != count:
        raise ValueError(
            "The label set must have as many classes as the head. "
            f"Received: classes={len(texts)}, image.classes={count}"
        )
    named = {
        "id2label": {str(i): text for i, text in enumerate(texts)},
        "label2id": {text: i for i, text in enumerate(texts)},
    }
    if config.class_loss == "sigmoid":
        return named | {"problem_type": "multi_label_classification"}
    # One class has no softmax there, and is a regression.
    return named | ({"problem_type": "single_label_classification"} if count > 1 else {})


def notes(config: TrainConfig) -> list[str]:
    """Returns what `transformers` does otherwise with a model, in sentences."""
    if config.image.classes is None:
        return [
            "the folder has no pooler, which transformers would make at random: load it with "
            "add_pooling_layer=False and take the first token of last_hidden_state"
        ]
    if config.class_loss == "semantic":
        return [
            "transformers takes one softmax over all classes, and this head learnt one for each "
            "level of a tree: compare its logits within a level"
        ]
    if config.image.classes == 1 and config.class_loss == "softmax":
        return ["transformers takes the sigmoid of one class, and sigline a softmax, which is 1"]
    return []
