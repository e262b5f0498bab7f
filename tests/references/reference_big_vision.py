"""The towers of big_vision in NumPy float64, written from their definition, and random parameters.

Names and shapes are those of its checkpoints: kernels of attention keep their heads apart.
"""

import numpy as np

ATTENTION = "MultiHeadDotProductAttention_0"


def random_parameters(
    *,
    width=16,
    heads=2,
    depth=2,
    mlp=24,
    patch=4,
    grid=3,
    pool="map",
    text=True,
    text_pool="last",
    seed=0,
) -> dict[str, np.ndarray]:
    """Returns parameters of a two-tower model by their names, all random, float32."""
    rng = np.random.default_rng(seed)
    found = {}

    def make(name, *shape):
        found[name] = (0.3 * rng.standard_normal(shape)).astype(np.float32)

    def norm(name):
        make(f"{name}/scale", width)
        make(f"{name}/bias", width)

    def attention(name):
        for part in ("query", "key", "value"):
            make(f"{name}/{part}/kernel", width, heads, width // heads)
            make(f"{name}/{part}/bias", heads, width // heads)
        make(f"{name}/out/kernel", heads, width // heads, width)
        make(f"{name}/out/bias", width)

    def mlp_block(name):
        make(f"{name}/Dense_0/kernel", width, mlp)
        make(f"{name}/Dense_0/bias", mlp)
        make(f"{name}/Dense_1/kernel", mlp, width)
        make(f"{name}/Dense_1/bias", width)

    def encoder(name):
        for i in range(depth):
            norm(f"{name}/encoderblock_{i}/LayerNorm_0")
            norm(f"{name}/encoderblock_{i}/LayerNorm_1")
            attention(f"{name}/encoderblock_{i}/{ATTENTION}")
            mlp_block(f"{name}/encoderblock_{i}/MlpBlock_0")
        norm(f"{name}/encoder_norm")

    def map_head(name):
        make(f"{name}/probe", 1, 1, width)
        attention(f"{name}/{ATTENTION}")
        norm(f"{name}/LayerNorm_0")
        mlp_block(f"{name}/MlpBlock_0")

    make("img/embedding/kernel", patch, patch, 3, width)
    make("img/embedding/bias", width)
    make("img/pos_embedding", 1, grid * grid, width)
    encoder("img/Transformer")
    if pool == "tok":
        make("img/cls", 1, 1, width)
    if pool == "map":
        map_head("img/MAPHead_0")
    if text:
        make("txt/Embed_0/embedding", 30, width)
        make("txt/pos_embedding", 1, 5, width)
        encoder("txt/Encoder_0")
        make("txt/head/kernel", width, width)
        make("txt/head/bias", width)
        make("t", 1)
        make("b", 1)
    if text and text_pool == "map":
        map_head("txt/MAPHead_0")
    return found


def _norm(p, name, x):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
    return x * p[f"{name}/scale"] + p[f"{name}/bias"]


def _attention(p, name, x, y):
    def project(part, source):
        return (
            np.einsum("btd,dhk->bthk", source, p[f"{name}/{part}/kernel"])
            + p[f"{name}/{part}/bias"]
        )

    q, k, v = project("query", x), project("key", y), project("value", y)
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum("bhqk,bkhd->bqhd", scores / scores.sum(-1, keepdims=True), v)
    return np.einsum("bthk,hkd->btd", mixed, p[f"{name}/out/kernel"]) + p[f"{name}/out/bias"]


def _mlp(p, name, x):
    x = x @ p[f"{name}/Dense_0/kernel"] + p[f"{name}/Dense_0/bias"]
    x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x @ p[f"{name}/Dense_1/kernel"] + p[f"{name}/Dense_1/bias"]


def _encoder(p, name, x):
    i = 0
    while f"{name}/encoderblock_{i}/LayerNorm_0/scale" in p:
        block = f"{name}/encoderblock_{i}"
        y = _norm(p, f"{block}/LayerNorm_0", x)
        x = x + _attention(p, f"{block}/{ATTENTION}", y, y)
        x = x + _mlp(p, f"{block}/MlpBlock_0", _norm(p, f"{block}/LayerNorm_1", x))
        i += 1
    return _norm(p, f"{name}/encoder_norm", x)


def _unit(x):
    return x / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-8)


def embed_image(p, images: np.ndarray) -> np.ndarray:
    """Returns unit embeddings of images `(batch, size, size, 3)`."""
    return _unit(pool_image(p, images))


def pool_image(p, images: np.ndarray) -> np.ndarray:
    """Returns what the pool gives of images `(batch, size, size, 3)`."""
    kernel = p["img/embedding/kernel"]
    patch, grid = kernel.shape[0], images.shape[1] // kernel.shape[0]
    cells = images.reshape(len(images), grid, patch, grid, patch, 3)
    x = np.einsum("bypxqc,pqcd->byxd", cells, kernel) + p["img/embedding/bias"]
    x = x.reshape(len(images), grid * grid, -1) + p["img/pos_embedding"]
    if "img/cls" in p:
        x = np.concatenate([np.repeat(p["img/cls"], len(x), 0), x], 1)
    x = _encoder(p, "img/Transformer", x)
    if "img/cls" in p:
        return x[:, 0]
    if "img/MAPHead_0/probe" not in p:
        return x.mean(1)
    return _map_head(p, "img/MAPHead_0", x)


def _map_head(p, name, x):
    pooled = _attention(p, f"{name}/{ATTENTION}", np.repeat(p[f"{name}/probe"], len(x), 0), x)
    mapped = _norm(p, f"{name}/LayerNorm_0", pooled)
    return (pooled + _mlp(p, f"{name}/MlpBlock_0", mapped))[:, 0]


def embed_text(p, ids: np.ndarray, *, pool: str = "last") -> np.ndarray:
    """Returns unit embeddings of tokens `(batch, length)`."""
    x = _encoder(p, "txt/Encoder_0", p["txt/Embed_0/embedding"][ids] + p["txt/pos_embedding"])
    pools = {
        "last": lambda: x[:, -1],
        "first": lambda: x[:, 0],
        "gap": lambda: x.mean(1),
        "max": lambda: x.max(1),
        "map": lambda: _map_head(p, "txt/MAPHead_0", x),
    }
    return _unit(pools[pool]() @ p["txt/head/kernel"] + p["txt/head/bias"])
