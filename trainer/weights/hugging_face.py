"""SigLIP and CLIP in the format of Hugging Face's `transformers`; `hugging_face_vit` has its ViTs.

A folder with `config.json` and `model.safetensors`, in shards or in one file. SigLIP 2 of fixed
resolution has the towers of SigLIP.
"""

import dataclasses
from typing import Any

import numpy as np

from sigline.trainer.config import (
    BlockConfig,
    ImageTowerConfig,
    PairsConfig,
    TextTowerConfig,
    TrainConfig,
)
from sigline.trainer.weights import processor, tokenizer_files
from sigline.trainer.weights.hugging_face_links import dense, layer_norm, patches
from sigline.trainer.weights.links import Link, same, transposed

_ACTIVATIONS = {
    # Two names of the same; exports have the latter.
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
}
# What `transformers` assumes where a config.json is silent.
_SIGLIP_TOWER: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "attention_dropout": 0.0,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "siglip_text": _SIGLIP_TOWER | {"vocab_size": 32_000, "max_position_embeddings": 64},
    "siglip_vision": _SIGLIP_TOWER | {"image_size": 224, "patch_size": 16, "num_channels": 3},
    "clip_text": {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "vocab_size": 49_408,
        "max_position_embeddings": 77,
        "eos_token_id": 49_407,
        "attention_dropout": 0.0,
    },
    "clip_vision": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "image_size": 224,
        "patch_size": 32,
        "num_channels": 3,
        "attention_dropout": 0.0,
    },
}
# A CLIP config.json from before `transformers` looked at it names this one.
_LEGACY_CLIP_END_ID = 2


def settings(config: dict[str, Any]) -> TrainConfig:
    """Returns a configuration whose model is that of a `config.json`; its training is a default's.

    Pixels are as the model's usual processor makes them.

    Args:
        config: The content of the file.

    Raises:
        ValueError: If it describes a model that the towers cannot be.
    """
    kind = config.get("model_type")
    if kind not in ("siglip", "clip"):
        raise ValueError(
            "Only models of model_type siglip, clip, vit or deit can be read. "
            f"Received: model_type={kind!r}"
        )
    of_text = _DEFAULTS[f"{kind}_text"] | (config.get("text_config") or {})
    of_image = _DEFAULTS[f"{kind}_vision"] | (config.get("vision_config") or {})
    image, text = image_tower(of_image), _text_tower(of_text)
    if kind == "siglip":
        if not of_image.get("vision_use_head", True):
            raise ValueError("vision_config.vision_use_head must be true. Received: false")
        projection = of_text.get("projection_size") or of_text["hidden_size"]
        if projection != image.width:
            raise ValueError(
                "text_config.projection_size must be vision_config.hidden_size. Received: "
                f"projection_size={projection}, hidden_size={image.width}"
            )
        loss = "sigmoid"
    else:
        projection = config.get("projection_dim", 512)
        image = dataclasses.replace(
            image,
            pool="tok",
            embedding_norm=True,
            patch_bias=False,
            projection=projection,
            projection_bias=False,
        )
        end_id = of_text["eos_token_id"]
        # Older files name an end token that the model never looked for: it pooled at the highest
        # id.
        end_id = of_text["vocab_size"] - 1 if end_id == _LEGACY_CLIP_END_ID else end_id
        text = dataclasses.replace(
            text, pool="end", end_id=end_id, causal=True, head_bias=False, strip_punctuation=False
        )
        loss = "softmax"
    image = dataclasses.replace(image, **processor.fields({}, kind, image.size))
    return TrainConfig(
        name=f"{kind}_imported",
        steps=1,
        global_batch_size=1,
        image=image,
        text=text,
        objectives=(PairsConfig(loss=loss),),
    )


def _sizes(tower: dict[str, Any]) -> dict[str, Any]:
    if tower["attention_dropout"]:
        raise ValueError(
            f"attention_dropout must be 0. Received: attention_dropout={tower['attention_dropout']}"
        )
    activation = tower["hidden_act"]
    if activation not in _ACTIVATIONS:
        raise ValueError(
            f"hidden_act must be one of {', '.join(_ACTIVATIONS)}. "
            f"Received: hidden_act={activation!r}"
        )
    return {
        "width": tower["hidden_size"],
        "depth": tower["num_hidden_layers"],
        "mlp_dim": tower["intermediate_size"],
        "num_heads": tower["num_attention_heads"],
        "block": BlockConfig(
            activation=_ACTIVATIONS[activation], norm_epsilon=tower["layer_norm_eps"]
        ),
    }


def image_tower(tower: dict[str, Any]) -> ImageTowerConfig:
    """Returns the sizes of an image tower; its pool is SigLIP's.

    Args:
        tower: What a `config.json` says of it, with all that `transformers` assumes.

    Raises:
        ValueError: If it is none that our towers can be.
    """
    size, patch = tower["image_size"], tower["patch_size"]
    if not isinstance(size, int) or not isinstance(patch, int) or tower["num_channels"] != 3:
        raise ValueError(
            "Images must be square with 3 channels. Received: "
            f"image_size={size}, patch_size={patch}, num_channels={tower['num_channels']}"
        )
    if size < patch:
        raise ValueError(
            "image_size must be at least patch_size. "
            f"Received: image_size={size}, patch_size={patch}"
        )
    # The convolution there drops the pixels that fill no patch, at 384 and patches of 14 six on the
    # right and below.
    return ImageTowerConfig(
        size=size, patch=patch, drop_remainder=bool(size % patch), **_sizes(tower)
    )


def _text_tower(tower: dict[str, Any]) -> TextTowerConfig:
    return TextTowerConfig(
        vocabulary_size=tower["vocab_size"],
        length=tower["max_position_embeddings"],
        **_sizes(tower),
    )


def config_json(config: TrainConfig) -> dict[str, Any]:
    """Returns the `config.json` of a model, as `settings` reads it.

    Raises:
        ValueError: If `transformers` has no model of these towers.
    """
    if config.text is None or config.image.classes is not None:
        raise ValueError(
            "Only models of two towers without a head can be written for transformers. Received: "
            f"text={'none' if config.text is None else 'given'}, "
            f"image.classes={config.image.classes}"
        )
    siglip = config.image.pool == "map"
    described = _as_siglip(config) if siglip else _as_clip(config)
    written = settings(described)
    image, text = serving(config.image), serving(config.text_tower)
    # `transformers` keeps the settings of pixels with the processor, not with the model.
    pixels = {name: getattr(image, name) for name in processor.FIELDS}
    same_image = dataclasses.replace(written.image, **pixels) == image
    if not same_image or not _same_text(written.text_tower, text):
        raise ValueError(
            "Only SigLIP's and CLIP's own towers can be written for transformers. "
            f"Received: image={image}, text={text}"
        )
    if written.pair_loss != config.pair_loss:
        raise ValueError(
            f"In transformers a model with image.pool={config.image.pool} is one of the "
            f"{written.pair_loss} loss. Received: loss={config.pair_loss!r}"
        )
    return described | {"architectures": ["SiglipModel" if siglip else "CLIPModel"]}


def serving(tower: Any) -> Any:
    """Returns a tower without what only training does."""
    block = dataclasses.replace(tower.block, dropout=0.0, stochastic_depth=0.0)
    dropped = {"token_dropout": 0.0} if isinstance(tower, ImageTowerConfig) else {}
    return dataclasses.replace(tower, block=block, **dropped)


def _same_text(ours: TextTowerConfig, theirs: TextTowerConfig) -> bool:
    """Whether two towers compute the same from the same tokens."""
    # `transformers` keeps the rules of texts with the tokenizer.
    words = {name: getattr(ours, name) for name in tokenizer_files.RULES}
    return ours == dataclasses.replace(theirs, **words)


def _as_siglip(config: TrainConfig) -> dict[str, Any]:
    text = their_sizes(config.text_tower) | {"projection_size": config.image.output_dim}
    return {
        "model_type": "siglip",
        "text_config": text
        | {
            "model_type": "siglip_text_model",
            "vocab_size": config.text_tower.vocabulary_size,
            "max_position_embeddings": config.text_tower.length,
        },
        "vision_config": their_sizes(config.image)
        | {
            "model_type": "siglip_vision_model",
            "image_size": config.image.size,
            "patch_size": config.image.patch,
        },
    }


def _as_clip(config: TrainConfig) -> dict[str, Any]:
    parts = _as_siglip(config)
    del parts["text_config"]["projection_size"]
    end_id = {} if config.text_tower.end_id is None else {"eos_token_id": config.text_tower.end_id}
    return {
        "model_type": "clip",
        "projection_dim": config.image.output_dim,
        "text_config": parts["text_config"]
        | end_id
        | {"model_type": "clip_text_model", "projection_dim": config.image.output_dim},
        "vision_config": parts["vision_config"]
        | {"model_type": "clip_vision_model", "projection_dim": config.image.output_dim},
    }


def their_sizes(tower: ImageTowerConfig | TextTowerConfig) -> dict[str, Any]:
    """Returns the sizes of a tower by the names of a `config.json`."""
    names = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    return {
        "hidden_size": tower.width,
        "num_hidden_layers": tower.depth,
        "intermediate_size": tower.mlp_dim,
        "num_attention_heads": tower.num_heads,
        "hidden_act": names[tower.block.activation],
        "layer_norm_eps": tower.block.norm_epsilon,
    }


def links(config: TrainConfig) -> list[Link]:
    """Returns how the tensors of a checkpoint are the parameters of a model."""
    image, text = config.image, config.text_tower
    shared_links = [
        same("text_model.embeddings.token_embedding.weight", "text/tokens"),
        _table("text_model.embeddings.position_embedding.weight", "text/positions"),
        *_encoder("text_model", "text", text.depth, norm="final_layer_norm"),
        patches("vision_model.embeddings.patch_embedding.weight", image),
        *_encoder("vision_model", "image", image.depth, norm="post_layernorm"),
        _scalar("logit_scale", "log_temperature", one=config.pair_loss == "sigmoid"),
    ]
    if image.pool == "map":
        return [
            *shared_links,
            *dense("text_model.head", "text/head"),
            same("vision_model.embeddings.patch_embedding.bias", "image/embedding/bias"),
            _table("vision_model.embeddings.position_embedding.weight", "image/positions"),
            *_pool("vision_model.head", "image/pool"),
            _scalar("logit_bias", "bias", one=True),
        ]
    return [
        *shared_links,
        transposed("text_projection.weight", "text/head/kernel"),
        transposed("visual_projection.weight", "image/projection/kernel"),
        *layer_norm("vision_model.pre_layrnorm", "image/embedding_norm"),
        _class_token(),
        # A bias changes no softmax over texts or images, so CLIP has none.
        Link((), ("bias",), lambda: (np.zeros((), np.float32),), lambda bias: ()),
    ]


def _table(theirs: str, ours: str) -> Link:
    return Link((theirs,), (ours,), lambda x: (x[np.newaxis],), lambda x: (x[0],))


def _scalar(theirs: str, ours: str, *, one: bool) -> Link:
    """A scalar, theirs in one dimension or in none."""
    shape = (1,) if one else ()
    return Link((theirs,), (ours,), lambda x: (x.reshape(()),), lambda x: (x.reshape(shape),))


def _mlp(theirs: str, ours: str) -> list[Link]:
    return [*dense(f"{theirs}.fc1", f"{ours}/up"), *dense(f"{theirs}.fc2", f"{ours}/down")]


def _encoder(theirs: str, ours: str, depth: int, *, norm: str) -> list[Link]:
    encoder_links = layer_norm(f"{theirs}.{norm}", f"{ours}/encoder/norm")
    for i in range(depth):
        layer, block = f"{theirs}.encoder.layers.{i}", f"{ours}/encoder/block_{i}"
        encoder_links += layer_norm(f"{layer}.layer_norm1", f"{block}/attention_norm")
        encoder_links += layer_norm(f"{layer}.layer_norm2", f"{block}/mlp_norm")
        encoder_links += _mlp(f"{layer}.mlp", f"{block}/mlp")
        for short, name in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "out")):
            encoder_links += dense(f"{layer}.self_attn.{short}_proj", f"{block}/attention/{name}")
    return encoder_links


def _pool(theirs: str, ours: str) -> list[Link]:
    attention = f"{ours}/attention"
    names = [f"{attention}/{name}" for name in ("query", "key", "value")]
    return [
        same(f"{theirs}.probe", f"{ours}/probe"),
        Link(
            (f"{theirs}.attention.in_proj_weight",),
            tuple(f"{name}/kernel" for name in names),
            lambda x: [part.T for part in np.split(x, 3)],
            lambda *parts: (np.concatenate([part.T for part in parts]),),
        ),
        Link(
            (f"{theirs}.attention.in_proj_bias",),
            tuple(f"{name}/bias" for name in names),
            lambda x: np.split(x, 3),
            lambda *parts: (np.concatenate(parts),),
        ),
        *dense(f"{theirs}.attention.out_proj", f"{attention}/out"),
        *layer_norm(f"{theirs}.layernorm", f"{ours}/norm"),
        *_mlp(f"{theirs}.mlp", f"{ours}/mlp"),
    ]


def _class_token() -> Link:
    """Links the class token and its position, which are one here, and writes a position of zero."""

    def read(token, table):
        return (token + table[0]).reshape(1, 1, -1), table[np.newaxis, 1:]

    def write(token, positions):
        table = np.concatenate([np.zeros_like(positions[0, :1]), positions[0]])
        return token.reshape(-1), table

    prefix = "vision_model.embeddings"
    return Link(
        (f"{prefix}.class_embedding", f"{prefix}.position_embedding.weight"),
        ("image/token", "image/positions"),
        read,
        write,
    )
