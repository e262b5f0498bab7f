"""The towers: their sizes, their blocks, and what they read."""

from dataclasses import dataclass, field

from sigline.trainer.config import checks

ACTIVATIONS = ("gelu_tanh", "gelu", "quick_gelu")
NORMS = ("layer", "rms")
INTERPOLATIONS = ("bilinear", "bicubic", "area", "box", "hamming", "lanczos")
RESIZES = ("squash", "crop", "crop_rounded")
_OF_TENSORFLOW = ("bilinear", "bicubic", "area")
_SIZES = ("width", "depth", "mlp_dim", "num_heads")


@dataclass(frozen=True)
class BlockConfig:
    """What papers vary in a transformer block; by default it is that of a plain ViT.

    Attributes:
        activation: Of the MLPs: `gelu_tanh`, `gelu` (exact) or `quick_gelu` (CLIP's).
        norm: Kind of all norms of the tower: `layer`, or `rms`, which does not centre and has no
            bias (arXiv 1910.07467).
        norm_epsilon: Added in norms to the variance, or to the mean square of `rms`.
        norm_bias: Whether layer norms have a bias.
        qkv_bias: Whether the projections to queries, keys and values have biases.
        mlp_bias: Whether the MLPs and the projection out of the attention have biases.
        qk_norm: Whether queries and keys are normalised head by head (arXiv 2302.05442).
        parallel: Whether attention and MLP read the same norm, side by side (arXiv 2302.05442).
        dropout: Share of activations dropped in training.
        stochastic_depth: Share of examples that skip the last block in training; earlier blocks are
            skipped by fewer, down to none at the first.
    """

    activation: str = "gelu_tanh"
    norm: str = "layer"
    norm_epsilon: float = 1e-6
    norm_bias: bool = True
    qkv_bias: bool = True
    mlp_bias: bool = True
    qk_norm: bool = False
    parallel: bool = False
    dropout: float = 0.0
    stochastic_depth: float = 0.0

    def check(self, key: str) -> None:
        """Raises ValueError, with the key and what to give, if a field makes no sense."""
        checks.one_of(f"{key}.activation", self.activation, ACTIVATIONS)
        checks.one_of(f"{key}.norm", self.norm, NORMS)
        if self.norm == "rms" and self.norm_bias:
            raise ValueError(
                f"{key}.norm_bias must be false with {key}.norm=rms, which has no bias. "
                f"Received: {key}.norm_bias=True"
            )
        checks.share(f"{key}.dropout", self.dropout)
        checks.share(f"{key}.stochastic_depth", self.stochastic_depth)


@dataclass(frozen=True)
class ImageTowerConfig:
    """A ViT; `models.sizes.sizes` has the published widths, depths and heads.

    With `grids` it is a FlexiViT (arXiv 2212.08013), which cuts the same pictures into patches of
    several sizes by one set of parameters: the more patches, the slower and the better.

    Attributes:
        size: Side of the square input in pixels.
        patch: Side of a patch in pixels; divides `size`, unless `drop_remainder`. With `grids` it
            is the side of the kernel that is stored, and need not divide anything.
        width: Width of the residual stream.
        depth: Number of blocks.
        mlp_dim: Hidden width of the MLPs.
        num_heads: Attention heads; divides `width`.
        pool: `map` (attention pooling), `gap` (mean of the patches), `tok` (class token) or `last`
            (the last patch).
        positions: Of the patches: `learned` or `sincos2d` (fixed).
        num_registers: Learned tokens behind the patches that no pool but `map` reads.
        token_dropout: Share of patches left out in training (arXiv 2212.00794).
        embedding_norm: Whether a layer norm precedes the first block, as in CLIP.
        patch_bias: Whether the projection of the patches has a bias; CLIP's has none.
        projection: Outputs of a projection behind the pool; None for no projection, as in SigLIP.
        projection_bias: Whether that projection has a bias.
        projection_tanh: Whether a tanh follows it: the layer before the head, `pre_logits`, of the
            first ViTs (arXiv 2010.11929, section 3.1).
        classes: Outputs of a classification head beside the embedding; None for no head.
        head_bias_init: What the biases of that head start at; minus the logarithm of the number of
            classes suits a sigmoid loss, in which each class is rare.
        resize: `squash` to a square, as SigLIP, or `crop`: the shorter side to `size`, the longer
            one in proportion, cut to whole pixels, then the middle; `crop_rounded` rounds the sides
            half to even, as big_vision's `resize_small`. A random crop of training is always
            squashed, since it is cut already.
        interpolation: `bilinear`, `bicubic` or `area` (the mean over what a pixel covers, of which
            random crops, as in big_vision, are `bilinear`); with `resampler=pillow` instead of
            `area` also `box`, `hamming` or `lanczos`.
        antialias: Whether resizing to `size` is antialiased; SigLIP's contract is False.
        mean: What is subtracted from pixels in [0, 1], by channel.
        std: What they are then divided by; with the mean of one half they come to [-1, 1].
        block: Variations of the blocks.
        drop_remainder: Whether pixels on the right and below that fill no patch are left out of the
            tower, as released models of patches of 14 at 384 do; else `patch` must divide `size`.
        resampler: Whose arithmetic resizes: `tensorflow` (big_vision's, cut to whole levels) or
            `pillow` (that of Hugging Face's processors, always antialiased, rounded).
        resize_side: Side in pixels that is resized to before the middle of `size` is cut out; None
            for that of `resize_ratio`.
        resize_ratio: Share of that side which the middle is: 0.875 resizes to 256 for a `size` of
            224.
        grids: Numbers of patches along a side, of which each step of training draws one; each
            divides `size`. Empty for a ViT of one size.
        position_grid: With `grids`, patches along a side of the positions that are stored; None for
            `default_grid`.
        default_grid: With `grids`, the one that evaluation and requests without a grid take; None
            for the largest.
        distillation_token: Whether a second learned token stands behind the class token, with a
            head of its own that learns a teacher's classes (DeiT, arXiv 2012.12877); needs
            `pool=tok`. Both tokens then have positions, if positions are learned. The logits of the
            model are the mean of those of both heads; its embedding is the class token's.
    """

    size: int = 224
    patch: int = 16
    width: int = 768
    depth: int = 12
    mlp_dim: int = 3072
    num_heads: int = 12
    pool: str = "map"
    positions: str = "learned"
    num_registers: int = 0
    token_dropout: float = 0.0
    embedding_norm: bool = False
    patch_bias: bool = True
    projection: int | None = None
    projection_bias: bool = True
    projection_tanh: bool = False
    classes: int | None = None
    head_bias_init: float = 0.0
    resize: str = "squash"
    interpolation: str = "bilinear"
    antialias: bool = False
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    block: BlockConfig = field(default_factory=BlockConfig)
    drop_remainder: bool = False
    resampler: str = "tensorflow"
    resize_side: int | None = None
    resize_ratio: float = 1.0
    grids: tuple[int, ...] = ()
    position_grid: int | None = None
    default_grid: int | None = None
    distillation_token: bool = False

    @property
    def grid(self) -> int:
        """Patches along a side; with `grids`, of the default one."""
        return self.default_grid or max(self.grids, default=self.size // self.patch)

    @property
    def stored_grid(self) -> int:
        """Patches along a side of the positions that are stored."""
        return self.position_grid or self.grid

    @property
    def resized_side(self) -> int:
        """Side in pixels that is resized to before the middle is cut out."""
        return self.resize_side or round(self.size / self.resize_ratio)

    @property
    def output_dim(self) -> int:
        """Width of the embeddings."""
        return self.width if self.projection is None else self.projection

    def check(self, key: str) -> None:
        """Raises ValueError, with the key and what to give, if a field makes no sense."""
        checks.one_of(f"{key}.pool", self.pool, ("map", "gap", "tok", "last"))
        checks.one_of(f"{key}.positions", self.positions, ("learned", "sincos2d"))
        checks.one_of(f"{key}.resize", self.resize, RESIZES)
        checks.one_of(f"{key}.interpolation", self.interpolation, INTERPOLATIONS)
        checks.one_of(f"{key}.resampler", self.resampler, ("tensorflow", "pillow"))
        for name in (*_SIZES, "size", "patch", "projection", "classes"):
            checks.at_least(f"{key}.{name}", getattr(self, name), 1)
        checks.at_least(f"{key}.num_registers", self.num_registers, 0)
        checks.finite(f"{key}.head_bias_init", self.head_bias_init)
        checks.share(f"{key}.token_dropout", self.token_dropout)
        self.block.check(f"{key}.block")
        if min(self.std) <= 0:
            raise ValueError(f"{key}.std must be positive. Received: {key}.std={self.std}")
        if self.projection_tanh and self.projection is None:
            raise ValueError(
                f"{key}.projection_tanh needs {key}.projection, which the tanh follows. "
                f"Received: {key}.projection_tanh=True, {key}.projection=none"
            )
        _check_heads(key, self)
        self._check_pixels(key)
        if self.grids:
            self._check_grids(key)
        else:
            self._check_one_grid(key)
        if self.distillation_token and self.pool != "tok":
            raise ValueError(
                f"{key}.pool must be tok with {key}.distillation_token, which stands beside the "
                f"class token. Received: {key}.pool={self.pool!r}"
            )
        if self.pool == "last" and self.token_dropout:
            raise ValueError(
                f"{key}.token_dropout must be 0 with {key}.pool=last: the last patch may be left "
                f"out. Received: {key}.token_dropout={self.token_dropout}"
            )

    def _check_grids(self, key: str) -> None:
        for grid in self.grids:
            if grid < 1 or self.size % grid:
                raise ValueError(
                    f"{key}.grids must hold numbers of patches along a side, each of which divides "
                    f"{key}.size. Received: {key}.grids={list(self.grids)}, {key}.size={self.size}"
                )
        if len(set(self.grids)) < len(self.grids):
            raise ValueError(
                f"{key}.grids must each be there once: all are drawn equally often. "
                f"Received: {key}.grids={list(self.grids)}"
            )
        if self.default_grid is not None and self.default_grid not in self.grids:
            raise ValueError(
                f"{key}.default_grid must be one of {key}.grids, or none for the largest. "
                f"Received: {key}.default_grid={self.default_grid}, {key}.grids={list(self.grids)}"
            )
        checks.at_least(f"{key}.position_grid", self.position_grid, 2)
        if self.drop_remainder:
            raise ValueError(
                f"{key}.drop_remainder must be false with {key}.grids, which leave nothing out. "
                f"Received: {key}.drop_remainder=True, {key}.grids={list(self.grids)}"
            )

    def _check_one_grid(self, key: str) -> None:
        for name in ("position_grid", "default_grid"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{key}.{name} needs {key}.grids; without them a tower has the patches of "
                    f"{key}.size and {key}.patch. Received: {key}.{name}={getattr(self, name)}, "
                    f"{key}.grids=[]"
                )
        if self.size < self.patch:
            raise ValueError(
                f"{key}.size must be at least {key}.patch. "
                f"Received: {key}.size={self.size}, {key}.patch={self.patch}"
            )
        if self.size % self.patch and not self.drop_remainder:
            raise ValueError(
                f"{key}.patch must divide {key}.size; pixels on the right and below would be "
                f"dropped otherwise, which {key}.drop_remainder=true allows. "
                f"Received: {key}.size={self.size}, {key}.patch={self.patch}"
            )

    def _check_pixels(self, key: str) -> None:
        if self.resize_side is not None and self.resize_side < self.size:
            raise ValueError(
                f"{key}.resize_side must be at least {key}.size, or none. "
                f"Received: {key}.resize_side={self.resize_side}, {key}.size={self.size}"
            )
        if not 0.0 < self.resize_ratio <= 1.0:
            raise ValueError(
                f"{key}.resize_ratio must be above 0 and at most 1. "
                f"Received: {key}.resize_ratio={self.resize_ratio}"
            )
        if self.resize_side is not None and self.resize_ratio != 1.0:
            raise ValueError(
                f"{key}.resize_ratio must be 1 with {key}.resize_side, which says the same. "
                f"Received: {key}.resize_ratio={self.resize_ratio}, "
                f"{key}.resize_side={self.resize_side}"
            )
        if self.interpolation == "area" and self.antialias:
            raise ValueError(
                f"{key}.antialias must be false with {key}.interpolation=area, which covers every "
                f"pixel without. Received: {key}.antialias=True"
            )
        if self.resampler == "pillow" and self.interpolation == "area":
            raise ValueError(
                f"{key}.interpolation=area needs {key}.resampler=tensorflow; Pillow's is box. "
                f"Received: {key}.resampler='pillow'"
            )
        if self.resampler == "pillow" and not self.antialias:
            raise ValueError(
                f"{key}.antialias must be true with {key}.resampler=pillow, which always "
                f"antialiases. Received: {key}.antialias=False"
            )
        if self.resampler != "pillow" and self.interpolation not in _OF_TENSORFLOW:
            raise ValueError(
                f"{key}.interpolation={self.interpolation} needs {key}.resampler=pillow. "
                f"Received: {key}.resampler={self.resampler!r}"
            )


@dataclass(frozen=True)
class TextTowerConfig:
    """A text transformer, by default bidirectional with its last token as the representation.

    Attributes:
        vocabulary_size: Rows of the token embedding; at least the vocabulary's size.
        length: Tokens per text after truncation and padding.
        width: Width of the residual stream.
        depth: Number of blocks.
        mlp_dim: Hidden width of the MLPs.
        num_heads: Attention heads; divides `width`.
        pool: The `last` or `first` token, the first one that is `end_id` (`end`), the mean (`gap`)
            or largest (`max`) of all, or attention pooling (`map`).
        end_id: Token that `pool=end` looks for; not used otherwise.
        causal: Whether tokens see only those before them, as in CLIP.
        head_bias: Whether the projection behind the pool has a bias.
        lowercase: Whether texts are lower-cased.
        strip_punctuation: Whether ASCII punctuation is removed.
        squeeze_whitespace: Whether white space is trimmed, and any run of it becomes one space.
        start_piece: Piece of the vocabulary that begins each text; None for none.
        end_piece: Piece that ends each text.
        pad_piece: Piece that the rest is filled with; SigLIP fills with the end of text, SigLIP 2
            with `<pad>`, so that its last token, which is pooled, mostly is that.
        block: Variations of the blocks.
    """

    vocabulary_size: int = 32_000
    length: int = 64
    width: int = 768
    depth: int = 12
    mlp_dim: int = 3072
    num_heads: int = 12
    pool: str = "last"
    end_id: int | None = None
    causal: bool = False
    head_bias: bool = True
    lowercase: bool = True
    strip_punctuation: bool = True
    squeeze_whitespace: bool = True
    start_piece: str | None = None
    end_piece: str = "</s>"
    pad_piece: str = "</s>"
    block: BlockConfig = field(default_factory=BlockConfig)

    def check(self, key: str) -> None:
        """Raises ValueError, with the key and what to give, if a field makes no sense."""
        checks.one_of(f"{key}.pool", self.pool, ("last", "first", "end", "gap", "max", "map"))
        for name in (*_SIZES, "vocabulary_size"):
            checks.at_least(f"{key}.{name}", getattr(self, name), 1)
        checks.at_least(f"{key}.length", self.length, 2)
        checks.at_least(f"{key}.end_id", self.end_id, 0)
        self.block.check(f"{key}.block")
        _check_heads(key, self)
        if self.pool == "end" and self.end_id is None:
            raise ValueError(
                f"{key}.end_id must be given with {key}.pool=end. Received: {key}.end_id=None"
            )


# What the towers may be: unions by kind; data without a kind are a ViT's and a transformer's.
ImageTower = ImageTowerConfig
TextTower = TextTowerConfig


def _check_heads(key: str, tower: ImageTowerConfig | TextTowerConfig) -> None:
    if tower.width % tower.num_heads:
        raise ValueError(
            f"{key}.num_heads must divide {key}.width. "
            f"Received: {key}.width={tower.width}, {key}.num_heads={tower.num_heads}"
        )
