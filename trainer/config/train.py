"""The training configuration: frozen dataclasses, strict overrides, JSON in and out.

A recipe (`trainer/recipes/NAME.py`) has a function `config()` that returns a `TrainConfig`.
"""

import dataclasses
import importlib
import json
import math
import types
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sigline.schemas import digests, strict, suggestions
from sigline.schemas.gate import Gate
from sigline.trainer.config import checks, stored


@dataclass(frozen=True)
class BlockConfig:
    """What papers vary in a transformer block; by default it is that of a plain ViT.

    Attributes:
        activation: Of the MLPs: `gelu_tanh`, `gelu` (exact) or `quick_gelu` (CLIP's).
        norm_epsilon: Added to the variance in layer norms.
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
    norm_epsilon: float = 1e-6
    norm_bias: bool = True
    qkv_bias: bool = True
    mlp_bias: bool = True
    qk_norm: bool = False
    parallel: bool = False
    dropout: float = 0.0
    stochastic_depth: float = 0.0


@dataclass(frozen=True)
class ImageTowerConfig:
    """A ViT; `models.sizes.sizes` has the published widths, depths and heads.

    Attributes:
        size: Side of the square input in pixels.
        patch: Side of a patch in pixels; divides `size`, unless `drop_remainder`.
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
        classes: Outputs of a classification head beside the embedding; None for no head.
        resize: `squash` to a square, as SigLIP, or `crop`: the shorter side to `size`, then the
            middle.
        interpolation: `bilinear` or `bicubic`; with `resampler=pillow` also `box`, `hamming` or
            `lanczos`.
        antialias: Whether resizing to `size` is antialiased; SigLIP's contract is False.
        mean: What is subtracted from pixels in [0, 1], by channel.
        std: What they are then divided by; with the mean of one half they come to [-1, 1].
        block: Variations of the blocks.
        drop_remainder: Whether pixels on the right and below that fill no patch are left out of the
            tower, as released models of patches of 14 at 384 do; else `patch` must divide `size`.
        resampler: Whose arithmetic resizes: `tensorflow` (big_vision's, cut to whole levels) or
            `pillow` (that of Hugging Face's processors, always antialiased, rounded).
        resize_side: Side in pixels that is resized to before the middle of `size` is cut out; None
            for `size`.
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
    classes: int | None = None
    resize: str = "squash"
    interpolation: str = "bilinear"
    antialias: bool = False
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    block: BlockConfig = field(default_factory=BlockConfig)
    drop_remainder: bool = False
    resampler: str = "tensorflow"
    resize_side: int | None = None

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.size // self.patch

    @property
    def output_dim(self) -> int:
        """Width of the embeddings."""
        return self.width if self.projection is None else self.projection


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


@dataclass(frozen=True)
class LossConfig:
    """The loss over all pairs of the global batch.

    Attributes:
        name: `sigmoid` (SigLIP) or `softmax` (CLIP, which ignores the bias).
        weight: Its factor beside the losses of `TrainConfig.distillation`; 0 leaves it out, so that
            images need no texts of their own.
        softmax_weight: Factor of the softmax loss, if it is to be added to the sigmoid one; they
            share the temperature.
        temperature_init: Initial temperature; its logarithm is trained.
        bias_init: Initial bias of the logits; None for the log prior of a positive pair,
            `-log(global_batch_size - 1)`.
        chunk_size: Texts per block of pairs; None for four million pairs, but at least 512 texts.
            Changes memory and speed, not the result.
        exchange: How texts reach the images of other replicas: `ring`, `all_gather` or `auto`.
        negatives: Which negatives count: `all`, or for studies of the sigmoid loss `random`, `hard`
            or `easy` ones, `negatives_per_image` of them.
        negatives_per_image: How many; not used with `all`.
    """

    name: str = "sigmoid"
    weight: float = 1.0
    softmax_weight: float = 0.0
    temperature_init: float = 10.0
    bias_init: float | None = -10.0
    chunk_size: int | None = None
    exchange: str = "auto"
    negatives: str = "all"
    negatives_per_image: int = 16


@dataclass(frozen=True)
class DistillationConfig:
    """What the model learns from a teacher: a frozen model that sees the same pixels.

    Crop, flip and mixup are the same for both ("patient and consistent", arXiv 2106.05237); if the
    teacher has another resolution, it gets the same crop at that one.

    Attributes:
        teacher: Name that the teacher's weights are given under.
        target: `classes`, the teacher's distribution over classes (of its own head, or of its texts
            for a label set) for the student's head, by KL divergence; or `pairs`, the probabilities
            it gives to the pairs of the batch, by the sigmoid loss with these as soft targets.
        weight: Factor of this loss.
        temperature: Divides the logits of both for `classes`; the divergence is multiplied by its
            square, which keeps the size of the gradient. 1 for `pairs`.
    """

    teacher: str
    target: str = "classes"
    weight: float = 1.0
    temperature: float = 1.0


# A regular expression that a parameter's whole name matches, and what it gets; the first one wins.
Rules = tuple[tuple[str, float | None], ...]


@dataclass(frozen=True)
class OptimizerConfig:
    """How gradients change parameters.

    A parameter p moves by `-s * (learning_rate * rate * u + weight_decay * decay * p)` for the
    schedule's factor s and the optimizer's direction u: the decay is multiplied by the schedule,
    not by the learning rate, as in big_vision. So `weight_decay=1e-4` at `learning_rate=1e-3` is
    0.1 in the convention of Keras and PyTorch.

    Attributes:
        name: `adamw`, `adafactor` (that of arXiv 2106.04560) or `lion` (arXiv 2302.06675).
        learning_rate: Peak learning rate.
        weight_decay: Peak decay.
        rates: Factors of the learning rate by the parameter's name; None freezes it: no gradient,
            no slots, no decay. Every parameter must match.
        decays: Factors of the decay by the parameter's name; every parameter must match.
        beta_1: Decay of the first moment; of the momentum with `adafactor`.
        beta_2: Decay of the second moment; its limit with `adafactor`.
        epsilon: Added to the root of the second moment of `adamw`.
        clip_norm: Largest global norm of the gradient; None for no limit.
        schedule: After the warm-up: `cosine` or `linear` to zero, `rsqrt` (falls with the root of
            the steps, so that a run can be prolonged) or `constant`.
        warmup_steps: Steps of linear warm-up.
        cooldown_steps: Last steps, over which the rate also falls linearly to zero.
        timescale: Steps after the warm-up at which `rsqrt` has fallen to 1 / sqrt(2).
        first_moment_dtype: `float32`, or `bfloat16` to save two bytes a parameter.
        ema_decay: Of the moving average of the parameters that is exported; None exports the
            parameters themselves.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    rates: Rules = ((".*", 1.0),)
    decays: Rules = ((".*/kernel", 1.0), (".*", 0.0))
    beta_1: float = 0.9
    beta_2: float = 0.95
    epsilon: float = 1e-8
    clip_norm: float | None = 1.0
    schedule: str = "cosine"
    warmup_steps: int = 0
    cooldown_steps: int = 0
    timescale: int = 10_000
    first_moment_dtype: str = "float32"
    ema_decay: float | None = None

    @property
    def reads_steps(self) -> bool:
        """Whether the rate of a step depends on how many there will be."""
        return self.schedule not in ("rsqrt", "constant") or self.cooldown_steps > 0


@dataclass(frozen=True)
class DataConfig:
    """How training examples are read.

    Attributes:
        shuffle_records: Size of the shuffle buffer of each folder, in encoded records.
        max_image_pixels: Largest image that is decoded, in pixels.
        crop_min_area: Least share of the image that a random crop keeps, at an aspect of 3:4 to 4:3
            (arXiv 1409.4842, section 6); None for whole images, as SigLIP has them.
        flip: Whether half of the images are mirrored; captions may then be wrong about sides.
        mixture: Weights of the folders to train on, in the order they are given in; empty to weight
            them by their records. Every batch holds the same number from each, the weights times
            its size, rounded.
        mixup: p of Beta(p, p), from which each step draws how much of its neighbour on the replica
            is mixed into every image, less than half (arXiv 1710.09412); 0 for none. Only for
            distillation: a mixed image no longer belongs to its text.
    """

    shuffle_records: int = 50_000
    max_image_pixels: int = 25_000_000
    crop_min_area: float | None = None
    flip: bool = False
    mixture: tuple[float, ...] = ()
    mixup: float = 0.0


@dataclass(frozen=True)
class RunConfig:
    """How a run goes: what does not decide its outcome, and may change when it is resumed.

    Attributes:
        checkpoint_steps: Steps between checkpoints.
        checkpoint_minutes: Minutes after which one is saved in any case; None for no limit.
        keep_checkpoints: The newest ones are kept, this many of them.
        keep_every_steps: Checkpoints at multiples of this are kept for good; None for none.
        max_skipped_steps: Steps that may change nothing because loss or gradient is not finite; one
            more stops the run, which then writes the keys of the first such batch.
        max_damaged_records: Records that may be unreadable in all; each is replaced by one beside
            it, and listed. One more stops the run.
        log_steps: Steps between log lines and TensorBoard scalars.
        strategy: `auto` (the workers of `$TF_CONFIG`, else all TPU cores, else all GPUs, else the
            CPU), `multi_worker`, `tpu`, `mirrored` or `one_device`.
        jit_compile: Whether XLA compiles the forward and backward pass and the update; None means
            on a TPU and on a single GPU, and elsewhere the update and parts of the towers.
    """

    checkpoint_steps: int = 1000
    checkpoint_minutes: float | None = None
    keep_checkpoints: int = 2
    keep_every_steps: int | None = None
    max_skipped_steps: int = 0
    max_damaged_records: int = 0
    log_steps: int = 50
    strategy: str = "auto"
    jit_compile: bool | None = None


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the outcome of a training run, besides data and code.

    How the run goes is in the group `run`, which is no part of the digests.

    Attributes:
        name: Name of the recipe.
        steps: Optimizer steps.
        global_batch_size: Pairs per step over all replicas.
        image: The image tower.
        text: The text tower; None for a model of images alone.
        loss: The loss over pairs.
        distillation: What is learnt from teachers besides; the losses are added.
        optimizer: How gradients change parameters.
        data: How examples are read.
        seed: Seed of the initial weights, the shuffle and the choice of captions.
        pretrained: Regular expressions of whole names of parameters that start from given weights;
            all others start at random.
        precision: `float32`, or `bfloat16` for all that the towers compute but norms and softmax;
            parameters and the loss stay float32.
        rematerialize: Whether the backward pass computes each block of the towers again instead of
            keeping what is inside: memory for time.
        microbatches: Parts that each replica's batch is embedded in, one after the other: memory
            for time (two forward passes instead of one). The loss is that of the whole batch, and
            so are its gradients (arXiv 2101.06983).
        run: How the run goes.
    """

    name: str
    steps: int
    global_batch_size: int
    image: ImageTowerConfig = field(default_factory=ImageTowerConfig)
    text: TextTowerConfig | None = field(default_factory=TextTowerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    distillation: tuple[DistillationConfig, ...] = ()
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    seed: int = 0
    pretrained: tuple[str, ...] = ()
    precision: str = "float32"
    rematerialize: bool = False
    microbatches: int = 1
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        checks.check(self)

    @property
    def text_tower(self) -> TextTowerConfig:
        """The text tower, for what needs one.

        Raises:
            ValueError: If it is left out.
        """
        if self.text is None:
            raise ValueError("This needs a model with a text tower. Received: text=none")
        return self.text

    @property
    def teachers(self) -> tuple[str, ...]:
        """Names of the teachers, sorted."""
        return tuple(sorted({item.teacher for item in self.distillation}))

    @property
    def bias_init(self) -> float:
        """Initial bias of the logits; none with the softmax loss, which no bias changes."""
        if self.loss.name == "softmax":
            return 0.0
        if self.loss.bias_init is not None:
            return self.loss.bias_init
        # A batch of one pair has no negatives, and any bias will do.
        return -math.log(max(self.global_batch_size - 1, 1))

    def to_json(self) -> str:
        """Returns the configuration as JSON text with sorted keys."""
        return json.dumps(strict.to_dict(self), sort_keys=True, indent=1)

    def digest(self) -> str:
        """Returns the digest of all that decides the outcome and differs from its default."""
        return digests.json_digest(self._outcome())

    def identity(self) -> str:
        """Returns the digest that two configurations share if one may go on from the other's run.

        The number of steps counts where the schedule reads it: else a run can be prolonged.
        """
        outcome = self._outcome()
        if not self.optimizer.reads_steps:
            del outcome["steps"]
        return digests.json_digest(outcome)

    def _outcome(self) -> dict[str, Any]:
        outcome = strict.changed(self)
        outcome.pop("run", None)
        return outcome


def from_json(text: str) -> TrainConfig:
    """Reads a configuration back from `TrainConfig.to_json`, or from one of earlier versions.

    Raises:
        ValueError: If a key is unknown or a value has the wrong type.
    """
    return strict.build(TrainConfig, stored.upgraded(json.loads(text)))


def load_recipe(name: str) -> TrainConfig:
    """Returns the configuration of `trainer/recipes/NAME.py`, or of a module such as `a.recipe`.

    Raises:
        ValueError: If there is no such recipe; the message lists those that exist.
    """
    return recipe_module(name).config()


def load_gate(name: str) -> Gate:
    """Returns what a model of a recipe must reach before it is published; see `load_recipe`.

    Raises:
        ValueError: If there is no such recipe, or it has no gate.
    """
    module = recipe_module(name)
    if not hasattr(module, "gate"):
        raise ValueError(
            f"Recipe {name} has no gate() and cannot run as a pipeline. Received: name={name!r}. "
            "Add a function gate() to the recipe, or train it with `sigline train`."
        )
    return module.gate()


def recipe_module(name: str) -> types.ModuleType:
    """Returns `trainer/recipes/NAME.py`, or the module of a name with a dot in it.

    Its docstring is its run card. A module of another package is code that is run: a name with a
    dot must come from who runs the command, never from a model.

    Raises:
        ValueError: If there is no such recipe; the message lists those that exist.
    """
    # Recipes are found by their names, as those of other packages are.
    recipes = importlib.import_module("sigline.trainer.recipes")
    known = recipes.names()
    if name in known:
        return importlib.import_module(f"sigline.trainer.recipes.{name}")
    message = f"Unknown recipe. Received: name={name!r}. Known recipes: {', '.join(known)}"
    if not is_of_other_package(name):
        raise ValueError(f"{message}.{suggestions.did_you_mean(name, known)}")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{message}, and modules that can be imported; this one cannot: {error}. Is its "
            "package installed here?"
        ) from None
    if not hasattr(module, "config"):
        raise ValueError(f"Recipe {name} must have a function config(). Received: {module}")
    return module


def is_of_other_package(name: str) -> bool:
    """Returns whether a recipe's name is that of a module, such as `my_project.recipe`."""
    return "." in name and all(part.isidentifier() for part in name.split("."))


def override(config: TrainConfig, assignments: Iterable[str]) -> TrainConfig:
    """Returns the configuration with `a.b=value` assignments applied, strictly.

    Raises:
        ValueError: If a key is unknown (the message names the known keys), a value has the wrong
            type, or an assignment has no `=`.
    """
    return strict.override(TrainConfig, strict.to_dict(config), assignments)


def tiny(config: TrainConfig) -> TrainConfig:
    """Returns the same recipe at a size that trains in seconds on a CPU, for tests."""
    sizes = {"width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 2}
    image = dataclasses.replace(config.image, size=2 * config.image.patch, **sizes)
    text = config.text
    if text is not None:
        text = dataclasses.replace(text, vocabulary_size=512, length=16, **sizes)
    return dataclasses.replace(
        config,
        image=image,
        text=text,
        steps=4,
        global_batch_size=8,
        run=dataclasses.replace(config.run, jit_compile=False, checkpoint_steps=2, log_steps=1),
        optimizer=dataclasses.replace(config.optimizer, warmup_steps=1, cooldown_steps=0),
        data=dataclasses.replace(config.data, shuffle_records=64),
    )
