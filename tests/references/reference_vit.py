"""ViT (arXiv 2010.11929) and DeiT (arXiv 2012.12877) in NumPy float64, and random parameters.

Names and shapes are those of Hugging Face's checkpoints: matrices are `(outputs, inputs)`.
"""

import math

import numpy as np

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 12,
    "patch_size": 4,
}
TEACHER_HEADS = ("cls_classifier", "distillation_classifier")
_ERF = np.vectorize(math.erf)


def random_parameters(
    kind: str, heads=("classifier",), *, classes=5, qkv_bias=True, pooler=False, sizes=None, seed=0
) -> dict[str, np.ndarray]:
    """Returns parameters by their names in a folder of Hugging Face, all random, float32.

    Args:
        kind: `vit`, or `deit` with a distillation token.
        heads: Names of the heads; with any, the encoder's names have a prefix.
        classes: Outputs of each head.
        qkv_bias: Whether queries, keys and values have biases.
        pooler: Whether there is a pooler.
        sizes: Replaces some of `SIZES`.
        seed: Decides the values.
    """
    rng = np.random.default_rng(seed)
    sizes = SIZES | (sizes or {})
    width, patch = sizes["hidden_size"], sizes["patch_size"]
    patches = (sizes["image_size"] // patch) ** 2
    tensors = {}

    def make(name, *shape):
        tensors[name] = (0.3 * rng.standard_normal(shape)).astype(np.float32)

    def dense(name, outputs, inputs, *, bias=True):
        make(f"{name}.weight", outputs, inputs)
        if bias:
            make(f"{name}.bias", outputs)

    prefix = f"{kind}." if heads else ""
    tokens = ("cls_token",) if kind == "vit" else ("cls_token", "distillation_token")
    for name in tokens:
        make(f"{prefix}embeddings.{name}", 1, 1, width)
    make(f"{prefix}embeddings.position_embeddings", 1, patches + len(tokens), width)
    make(f"{prefix}embeddings.patch_embeddings.projection.weight", width, 3, patch, patch)
    make(f"{prefix}embeddings.patch_embeddings.projection.bias", width)
    norms = [f"{prefix}layernorm"]
    for i in range(sizes["num_hidden_layers"]):
        layer = f"{prefix}encoder.layer.{i}"
        norms += [f"{layer}.layernorm_before", f"{layer}.layernorm_after"]
        for name in ("query", "key", "value"):
            dense(f"{layer}.attention.attention.{name}", width, width, bias=qkv_bias)
        dense(f"{layer}.attention.output.dense", width, width)
        dense(f"{layer}.intermediate.dense", sizes["intermediate_size"], width)
        dense(f"{layer}.output.dense", width, sizes["intermediate_size"])
    for name in norms:
        make(f"{name}.weight", width)
        make(f"{name}.bias", width)
    for name in heads:
        dense(name, classes, width)
    if pooler:
        dense(f"{prefix}pooler.dense", width, width)
    return tensors


def _dense(p, name, x):
    y = x @ p[f"{name}.weight"].T
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def _norm(p, name, x, epsilon):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon)
    return x * p[f"{name}.weight"] + p[f"{name}.bias"]


def _attention(p, name, x, num_heads):
    def split(part):
        y = _dense(p, f"{name}.attention.{part}", x)
        return y.reshape(*y.shape[:2], num_heads, -1)

    q, k, v = map(split, ("query", "key", "value"))
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum("bhqk,bkhd->bqhd", scores / scores.sum(-1, keepdims=True), v)
    return _dense(p, f"{name}.output.dense", mixed.reshape(x.shape))


def tokens(parameters, images: np.ndarray, *, num_heads=2, epsilon=1e-12) -> np.ndarray:
    """Returns the last state of all tokens, `(batch, tokens, width)`.

    Args:
        parameters: By the names of `random_parameters`.
        images: Shape `(batch, size, size, 3)`; what fills no patch is not looked at.
        num_heads: Heads of the attention.
        epsilon: Added to variances.
    """
    p = {name.removeprefix("vit.").removeprefix("deit."): x for name, x in parameters.items()}
    p = {name: x.astype(np.float64) for name, x in p.items()}
    kernel = p["embeddings.patch_embeddings.projection.weight"]
    patch = kernel.shape[-1]
    grid = images.shape[1] // patch
    pixels = images[:, : grid * patch, : grid * patch].astype(np.float64)
    cells = pixels.reshape(len(images), grid, patch, grid, patch, 3)
    x = np.einsum("bypxqc,dcpq->byxd", cells, kernel)
    x = x.reshape(len(images), grid * grid, -1) + p["embeddings.patch_embeddings.projection.bias"]
    names = ("embeddings.cls_token", "embeddings.distillation_token")
    first = [p[name] for name in names if name in p]
    x = np.concatenate([*(np.repeat(token, len(x), 0) for token in first), x], 1)
    x = x + p["embeddings.position_embeddings"]
    i = 0
    while f"encoder.layer.{i}.layernorm_before.weight" in p:
        layer = f"encoder.layer.{i}"
        y = _norm(p, f"{layer}.layernorm_before", x, epsilon)
        x = x + _attention(p, f"{layer}.attention", y, num_heads)
        y = _norm(p, f"{layer}.layernorm_after", x, epsilon)
        y = _dense(p, f"{layer}.intermediate.dense", y)
        x = x + _dense(p, f"{layer}.output.dense", 0.5 * y * (1 + _ERF(y / np.sqrt(2))))
        i += 1
    return _norm(p, "layernorm", x, epsilon)


def logits(parameters, images: np.ndarray, **options) -> dict[str, np.ndarray]:
    """Returns the logits `(batch, classes)` by the names of the heads; see `tokens`."""
    x = tokens(parameters, images, **options)
    p = {name: value.astype(np.float64) for name, value in parameters.items()}
    places = {"classifier": 0, "cls_classifier": 0, "distillation_classifier": 1}
    return {
        name: _dense(p, name, x[:, place])
        for name, place in places.items()
        if f"{name}.weight" in p
    }
