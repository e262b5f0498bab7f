"""The vocabulary component."""

import itertools
import os
from collections.abc import Iterator

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types import artifact_utils
from tfx.types.standard_artifacts import Examples

from sigline.components.artifact_types import Vocabulary
from sigline.components.vocabulary.vocabulary import train_vocabulary
from sigline.schemas import artifacts, record


@component
def TrainVocabulary(
    examples: InputArtifact[list[Examples]],
    vocabulary: OutputArtifact[Vocabulary],
    recipe: Parameter[str],
    code_digest: Parameter[str],
):
    """Trains a vocabulary from the captions of the training split, canonicalised as in training.

    `recipe` is the text tower's configuration as JSON; the digest is there for the cache only.
    """
    del code_digest
    import json

    from sigline.trainer.config import TextTowerConfig

    config = TextTowerConfig(**json.loads(recipe))
    # TFX keeps no order of artifacts.
    ordered = sorted(examples, key=lambda item: item.span)
    split_dirs = [artifact_utils.get_split_uri([item], record.TRAIN_SPLIT) for item in ordered]
    captions = itertools.chain.from_iterable(_captions(path, config) for path in split_dirs)
    model = train_vocabulary(captions, vocabulary_size=config.vocabulary_size)
    with open(os.path.join(vocabulary.uri, artifacts.VOCABULARY_FILE), "wb") as handle:
        handle.write(model)


def _captions(split_dir: str, config) -> Iterator[str]:
    import tensorflow as tf

    from sigline.schemas import tf_example
    from sigline.trainer import data, preprocess

    for shard in data.shard_files(split_dir):
        texts = [
            text for item in tf_example.read_shard(shard) for text in tf_example.decode(item).text
        ]
        if texts:
            for text in preprocess.canonicalize(tf.constant(texts), config).numpy():
                yield text.decode()
