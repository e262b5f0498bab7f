"""The vocabulary component."""

import itertools
import os
from collections.abc import Iterator

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types import artifact_utils
from tfx.types.standard_artifacts import Examples

from sigline.components.shared.artifact_types import Vocabulary
from sigline.components.vocabulary.vocabulary import train_vocabulary
from sigline.schemas import artifacts, record, strict


@component
def TrainVocabulary(
    examples: InputArtifact[list[Examples]],
    vocabulary: OutputArtifact[Vocabulary],
    recipe: Parameter[str],
    code_digest: Parameter[str],
    weights: Parameter[str] = "",
    weights_vocabulary: Parameter[str] = "",
):
    """Trains a vocabulary from the captions of the training split, canonicalised as in training.

    Where training starts from the token table of weights, `weights_vocabulary` is the digest of
    their vocabulary, and that is handed on instead. `recipe` is the text tower's configuration as
    JSON; the digest of the code is there for the cache only.
    """
    del code_digest
    import json

    output = os.path.join(vocabulary.uri, artifacts.VOCABULARY_FILE)
    if weights_vocabulary:
        _hand_on(weights, weights_vocabulary, output)
        return

    from sigline.trainer.config import TextTowerConfig

    config = strict.build(TextTowerConfig, json.loads(recipe))
    # TFX returns artifacts in no particular order.
    ordered = sorted(examples, key=lambda item: item.span)
    split_dirs = [artifact_utils.get_split_uri([item], record.TRAIN_SPLIT) for item in ordered]
    captions = itertools.chain.from_iterable(_captions(path, config) for path in split_dirs)
    model = train_vocabulary(captions, vocabulary_size=config.vocabulary_size)
    with open(output, "wb") as handle:
        handle.write(model)


def _hand_on(weights: str, digest: str, output: str) -> None:
    """Writes the vocabulary of weights; raises ValueError if it is not the one planned with."""
    from sigline.trainer.weights import tokenizer_json, weight_folders

    model = weight_folders.load_vocabulary(weights)
    received = "none" if model is None else tokenizer_json.digest(model)
    if model is None or received != digest:
        raise ValueError(
            "The vocabulary of the weights must not change during a run. Received: "
            f"weights={weights}, vocabulary={received[:12]}, at the start of the run {digest[:12]}"
        )
    with open(output, "wb") as handle:
        handle.write(model)


def _captions(split_dir: str, config) -> Iterator[str]:
    import tensorflow as tf

    from sigline.schemas import tf_example
    from sigline.trainer.inputs import preprocess, shards

    for shard in shards.shard_files(split_dir):
        texts = [
            text for item in tf_example.read_shard(shard) for text in tf_example.decode(item).text
        ]
        if texts:
            for text in preprocess.canonicalize(tf.constant(texts), config).numpy():
                yield text.decode()
