"""The publishing components: of models, and of their indexes."""

import json
import os
import shutil
from pathlib import Path

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import (
    Examples,
    InfraBlessing,
    Model,
    ModelBlessing,
    ModelEvaluation,
    PushedModel,
)
from tfx.utils import path_utils

from sigline.components.publish import card as cards
from sigline.components.publish import indexes, publishing, remote
from sigline.components.publish.publishing import Published
from sigline.components.shared.artifact_types import EmbeddingIndex, ModelCard
from sigline.schemas import artifacts, signatures, signing, versions


@component
def DescribeModel(
    model: InputArtifact[Model],
    evaluation: InputArtifact[ModelEvaluation],
    trained_on: InputArtifact[list[Examples]],
    card: OutputArtifact[ModelCard],
    config: Parameter[str],
    input_digest: Parameter[str],
    weights_digest: Parameter[str],
    teacher_digests: Parameter[str],
    code_digest: Parameter[str],
    baseline: InputArtifact[Model] = None,
):
    """Writes the model card."""
    del code_digest
    parents = {f"teacher {name}": x for name, x in json.loads(teacher_digests).items()}
    parents |= {"weights that it started from": weights_digest} if weights_digest else {}
    content = cards.card(
        path_utils.serving_model_path(model.uri),
        evaluation.uri,
        [(item.span, item.version, item.uri) for item in trained_on],
        config=json.loads(config),
        input_digest=input_digest,
        parents=parents,
        baseline_dir=path_utils.serving_model_path(baseline.uri) if baseline else None,
    )
    with open(os.path.join(card.uri, artifacts.CARD_FILE), "w", encoding="utf-8") as handle:
        json.dump(content, handle, indent=1, sort_keys=True)
    with open(os.path.join(card.uri, artifacts.CARD_PAGE), "w", encoding="utf-8") as handle:
        handle.write(cards.markdown(content))


@component
def PublishModel(
    model: InputArtifact[Model],
    model_blessing: InputArtifact[ModelBlessing],
    infra_blessing: InputArtifact[InfraBlessing],
    pushed_model: OutputArtifact[PushedModel],
    serving_dir: Parameter[str],
    run_nonce: Parameter[str],
    keep_versions: Parameter[int] = 0,
    signing_key: Parameter[str] = "",
    card: InputArtifact[ModelCard] = None,
):
    """Publishes a model that both gates blessed; else records that nothing was pushed.

    The nonce differs in every run: whether the serving folder still holds the model is looked up,
    never answered from the cache. A model that stands there already is not copied again. Of more
    than `keep_versions` the oldest are removed; 0 keeps all. With a key it is signed. The
    warm-up requests and the card lie in its `assets.extra`.
    """
    del run_nonce
    blessings = (model_blessing, infra_blessing)
    if not all(b.get_int_custom_property(artifacts.BLESSED_PROPERTY) == 1 for b in blessings):
        pushed_model.set_int_custom_property("pushed", 0)
        return
    directory = path_utils.serving_model_path(model.uri)
    files = [os.path.join(infra_blessing.uri, signatures.WARMUP_FILE)]
    if card is not None:
        files += [os.path.join(card.uri, x) for x in (artifacts.CARD_FILE, artifacts.CARD_PAGE)]
    extras = {os.path.basename(x): Path(x).read_bytes() for x in files if os.path.isfile(x)}
    published = _publish(directory, serving_dir, keep_versions, signing_key, extras=extras)
    # Readers of PushedModel find the SavedModel at its URI, as after TFX's Pusher.
    # Hard links, if the file system has them, so that a rerun takes no further space.
    shutil.copytree(
        directory if versions.is_remote(serving_dir) else published.path,
        pushed_model.uri,
        dirs_exist_ok=True,
        copy_function=versions.link_or_copy,
    )
    _record(pushed_model, published)


@component
def PublishIndex(
    index: InputArtifact[EmbeddingIndex],
    pushed_model: InputArtifact[PushedModel],
    pushed_index: OutputArtifact[PushedModel],
    index_dir: Parameter[str],
    run_nonce: Parameter[str],
    keep_versions: Parameter[int] = 0,
    signing_key: Parameter[str] = "",
):
    """Publishes an index whose model is the published one; the nonce differs in every run.

    Nothing is published where no model was, and an index of another model fails the run.
    """
    del run_nonce
    is_pushed = pushed_model.get_int_custom_property("pushed") == 1
    if not is_pushed or index.get_int_custom_property(artifacts.BUILT_PROPERTY) != 1:
        pushed_index.set_int_custom_property("pushed", 0)
        return
    directory = os.path.join(index.uri, artifacts.INDEX_FOLDER)
    marker = indexes.marker(directory, pushed_model.uri)
    _record(pushed_index, _publish(directory, index_dir, keep_versions, signing_key, marker=marker))


def _publish(directory: str, base: str, keep: int, signing_key: str, **options) -> Published:
    publisher = remote if versions.is_remote(base) else publishing
    signer = signing.Signer(signing_key) if signing_key else None
    return publisher.publish(directory, base, keep=keep or None, signer=signer, **options)


def _record(pushed: PushedModel, published: Published) -> None:
    """Says where a version was put, in the properties that TFX's Pusher sets, and more."""
    pushed.set_int_custom_property("pushed", 1)
    pushed.set_string_custom_property("pushed_destination", published.uri)
    pushed.set_string_custom_property("pushed_version", str(published.version))
    pushed.set_string_custom_property("model_digest", published.digest)
    pushed.set_int_custom_property("copied", int(published.copied))
