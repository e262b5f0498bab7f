"""Artifact types that TFX has no standard type for."""

from tfx.types import artifact


class IngestReport(artifact.Artifact):
    """Counts of an ingest run and the rejected pairs."""

    TYPE_NAME = "SiglineIngestReport"


class DataReport(artifact.Artifact):
    """The data gate's findings."""

    TYPE_NAME = "SiglineDataReport"


class DataAcceptance(artifact.Artifact):
    """That the data gate let data pass; its properties name the artifacts."""

    TYPE_NAME = "SiglineDataAcceptance"


class Vocabulary(artifact.Artifact):
    """A SentencePiece vocabulary."""

    TYPE_NAME = "SiglineVocabulary"


class EmbeddingIndex(artifact.Artifact):
    """An index of images, if the model was blessed."""

    TYPE_NAME = "SiglineEmbeddingIndex"
