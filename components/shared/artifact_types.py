"""Artifact types that TFX has no standard type for.

Their names are such as Kubeflow takes: a package and a class.
"""

from tfx.types import artifact


class IngestReport(artifact.Artifact):
    """Counts of an ingest run and the rejected pairs."""

    TYPE_NAME = "sigline.IngestReport"


class DataReport(artifact.Artifact):
    """The data gate's findings."""

    TYPE_NAME = "sigline.DataReport"


class DataAcceptance(artifact.Artifact):
    """A record that data passed the data gate; its properties name the artifacts."""

    TYPE_NAME = "sigline.DataAcceptance"


class Vocabulary(artifact.Artifact):
    """A SentencePiece vocabulary."""

    TYPE_NAME = "sigline.Vocabulary"


class EmbeddingIndex(artifact.Artifact):
    """An index of images, if the model was blessed."""

    TYPE_NAME = "sigline.EmbeddingIndex"


class ModelCard(artifact.Artifact):
    """What a model is, what it was made of and what it is worth, for people and as JSON."""

    TYPE_NAME = "sigline.ModelCard"
