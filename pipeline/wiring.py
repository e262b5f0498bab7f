"""Wires the components into a pipeline; wiring only."""

import json
import os
import uuid
from typing import Any, NamedTuple

import sigline.quiet

sigline.quiet.import_tfx()

from tfx.components.example_validator.component import ExampleValidator
from tfx.components.statistics_gen.component import StatisticsGen
from tfx.dsl.components.base.base_node import BaseNode
from tfx.orchestration import metadata
from tfx.orchestration import pipeline as tfx_pipeline
from tfx.types.channel import Channel

from tensorflow_data_validation import StatsOptions  # isort: skip  # After tfx.

from sigline.components.check_serving.component import CheckServing
from sigline.components.embed.component import EmbedExamples
from sigline.components.evaluate.component import EvaluateModel
from sigline.components.export_tower.component import ExportFrozenTower
from sigline.components.index import faiss_index
from sigline.components.index.component import IndexCorpus
from sigline.components.ingest.component import IngestExamples
from sigline.components.publish.component import DescribeModel, PublishIndex, PublishModel
from sigline.components.train.component import TrainModel
from sigline.components.validate.component import CheckData, ProvideSchema, ReportData
from sigline.components.vocabulary.component import TrainVocabulary
from sigline.pipeline import beam_arguments, checks, planning
from sigline.pipeline.environment import TFX, Environment
from sigline.pipeline.history import (
    EXAMPLES,
    MODEL,
    REPORT,
    STATISTICS,
    History,
    MetadataHistory,
)
from sigline.pipeline.planning import Plan
from sigline.schemas import retrieval

# Tag of the image tensorflow/serving: the newest release.
_TF_SERVING = "2.20.0"


def build(environment: Environment) -> tfx_pipeline.Pipeline:
    """Returns the pipeline for runners on one machine, which have a database of what ran.

    Raises:
        ValueError: If the environment, the recipe or an override is wrong.
    """
    if beam_arguments.runner(environment.beam_args) == beam_arguments.DATAFLOW:
        raise ValueError(
            "beam_args must name another runner: Dataflow's workers do not see the folders of this "
            "machine. Pipelines on Vertex AI use it, `sigline kubeflow compile --engine vertex`. "
            f"Received: beam_args={list(environment.beam_args)}"
        )
    plan = planning.plan(environment)
    return tfx_pipeline.Pipeline(
        pipeline_name=environment.pipeline_name,
        pipeline_root=environment.pipeline_root,
        components=wire(environment, plan, MetadataHistory(), uuid.uuid4().hex),
        enable_cache=True,
        metadata_connection_config=metadata.sqlite_metadata_connection_config(
            environment.metadata_path
        ),
        beam_pipeline_args=list(environment.beam_args),
    )


def wire(environment: Environment, plan: Plan, history: History, run: str) -> list[BaseNode]:
    """Returns the nodes: ingest, validate, train, evaluate, check, publish.

    Args:
        environment: What to run.
        plan: What was worked out for it, or the outputs of a node that does it.
        history: Makes the nodes that find what runs before have made.
        run: What tells this run from others.

    Raises:
        ValueError: If the environment is wrong.
    """
    beam_arguments.check(environment.beam_args)
    data = _data_nodes(environment, plan, history)
    window, trained_on = [], data.ingested.outputs["examples"]
    if environment.window > 1:
        window = [history.window(environment, plan, data.ingested.outputs["examples"])]
        window[0].add_upstream_node(data.checked)
        trained_on = window[0].outputs[EXAMPLES]
    vocabulary = _vocabulary(environment, plan, trained_on)
    embedding = _embedding(environment, plan, data.ingested)
    trained = TrainModel(
        examples=embedding[-1].outputs["embedded"] if embedding else trained_on,
        config=plan.config,
        weights=environment.weights,
        weights_digest=plan.weights_digest,
        teachers=json.dumps(environment.teachers, sort_keys=True),
        teacher_digests=plan.teacher_digests,
        checkpoint_root=environment.checkpoint_root,
        python=environment.trainer_python,
        code_digest=plan.train_code,
        vocabulary=vocabulary[0].outputs["vocabulary"] if vocabulary else None,
    ).with_id("Trainer")
    # Training waits for the data gate, also where no vocabulary is made before it.
    for node in vocabulary or [trained]:
        node.add_upstream_node(data.checked)
    return [
        *data.nodes,
        *window,
        *vocabulary,
        *embedding,
        trained,
        *_judged_and_published(environment, plan, history, run, data.ingested, trained_on, trained),
    ]


def _vocabulary(environment: Environment, plan: Plan, trained_on: Channel) -> list[BaseNode]:
    """Returns the node that trains a vocabulary, or hands on that of weights, if texts are read."""
    if not checks.reads_texts(environment):
        return []
    # Parameters are passed only where they are asked for.
    brought = {"weights": environment.weights, "weights_vocabulary": plan.vocabulary_digest}
    node = TrainVocabulary(
        examples=trained_on,
        recipe=plan.text_tower,
        code_digest=plan.vocabulary_code,
        **(brought if environment.weights else {}),
    )
    return [node]


def _judged_and_published(
    environment: Environment,
    plan: Plan,
    history: History,
    run: str,
    ingested: BaseNode,
    trained_on: Channel,
    trained: BaseNode,
) -> list[BaseNode]:
    """Returns the nodes from the trained model to the published one and its index."""
    last_blessed = history.last_blessed_model(environment, trained.outputs["model"])
    evaluated = EvaluateModel(
        examples=ingested.outputs["examples"],
        model=trained.outputs["model"],
        model_run=trained.outputs["model_run"],
        baseline=last_blessed.outputs[MODEL],
        trained_on=trained_on,
        gate=plan.gate,
        options=plan.evaluation,
        embedding_cache=environment.embedding_cache,
        code_digest=plan.evaluate_code,
    )
    served = _infra_check(environment, plan, ingested, trained, evaluated)
    described = DescribeModel(
        model=trained.outputs["model"],
        evaluation=evaluated.outputs["evaluation"],
        trained_on=trained_on,
        baseline=last_blessed.outputs[MODEL],
        config=plan.config,
        input_digest=plan.input_digest,
        weights_digest=plan.weights_digest,
        teacher_digests=plan.teacher_digests,
        code_digest=plan.publish_code,
    )
    published = PublishModel(
        card=described.outputs["card"],
        model=trained.outputs["model"],
        model_blessing=evaluated.outputs["blessing"],
        infra_blessing=served.outputs["blessing"],
        serving_dir=environment.serving_dir,
        **_publishing(environment, run),
    )
    indexed = _indexed(environment, plan, run, trained_on, trained, evaluated, served, published)
    return [last_blessed, evaluated, served, described, published, *indexed]


class _Data(NamedTuple):
    """Nodes from the pairs to the data gate, and those of them that others refer to."""

    nodes: list[BaseNode]
    ingested: BaseNode
    checked: BaseNode


def _data_nodes(environment: Environment, plan: Plan, history: History) -> _Data:
    # This node exists only where a window is asked for.
    earlier = [history.earlier_spans(environment, plan)] if environment.window > 1 else []
    ingested = IngestExamples(
        input_base=plan.input_base,
        config=json.dumps(environment.ingest, sort_keys=True),
        span=plan.span,
        version=plan.version,
        earlier=earlier[0].outputs[EXAMPLES] if earlier else None,
        input_digest=plan.input_digest,
        code_digest=plan.ingest_code,
    )
    schema = ProvideSchema(schema_file=environment.schema, schema_digest=plan.schema_digest)
    statistics = StatisticsGen(
        examples=ingested.outputs["examples"],
        schema=schema.outputs["schema"],
        # Without semantic domains the checks of images and captions vanish silently.
        stats_options=StatsOptions(enable_semantic_domain_stats=True),
    )
    validator = ExampleValidator(
        statistics=statistics.outputs["statistics"], schema=schema.outputs["schema"]
    )
    last_accepted = history.last_accepted_data(environment, plan, statistics.outputs["statistics"])
    reported = ReportData(
        ingest_report=ingested.outputs["report"],
        anomalies=validator.outputs["anomalies"],
        statistics=statistics.outputs["statistics"],
        schema=schema.outputs["schema"],
        earlier_report=last_accepted.outputs[REPORT],
        earlier_statistics=last_accepted.outputs[STATISTICS],
        config=json.dumps(environment.data_gate, sort_keys=True),
        code_digest=plan.validate_code,
    )
    checked = CheckData(
        examples=ingested.outputs["examples"],
        statistics=statistics.outputs["statistics"],
        ingest_report=ingested.outputs["report"],
        report=reported.outputs["report"],
        spans=environment.spans,
        code_digest=plan.validate_code,
    )
    nodes = [
        *earlier,
        ingested,
        schema,
        statistics,
        validator,
        last_accepted,
        reported,
        checked,
    ]
    return _Data(nodes, ingested, checked)


def _publishing(environment: Environment, run: str) -> dict[str, Any]:
    """Returns what the nodes that publish have in common."""
    return {
        "keep_versions": environment.keep_versions or 0,
        "signing_key": environment.signing_key,
        # A new value in every run keeps the cache from answering: these nodes look at their folder
        # anew.
        "run_nonce": run,
    }


def _infra_check(environment: Environment, plan: Plan, ingested, trained, evaluated) -> BaseNode:
    """Returns the node that serves the candidate: sigline's own, or TFX's on a cluster."""
    if environment.infra == TFX:
        # Kubernetes' client, which it imports, takes seconds.
        from tfx.components.infra_validator.component import InfraValidator
        from tfx.proto import infra_validator_pb2

        return InfraValidator(
            model=trained.outputs["model"],
            serving_spec=infra_validator_pb2.ServingSpec(
                tensorflow_serving=infra_validator_pb2.TensorFlowServing(tags=[_TF_SERVING]),
                kubernetes=infra_validator_pb2.KubernetesConfig(),
                model_name="sigline",
            ),
            validation_spec=infra_validator_pb2.ValidationSpec(
                max_loading_time_seconds=300, num_tries=3
            ),
        ).with_id("CheckServing")
    return CheckServing(
        model=trained.outputs["model"],
        examples=ingested.outputs["examples"],
        model_blessing=evaluated.outputs["blessing"],
        model_run=trained.outputs["model_run"],
        gate=plan.gate,
        max_memory_mib=float(environment.serving_memory_mib or 0),
        max_latency_ms=float(environment.serving_latency_ms or 0),
        code_digest=plan.serve_code,
    )


def _indexed(
    environment: Environment,
    plan: Plan,
    run: str,
    trained_on,
    trained,
    evaluated,
    served,
    published,
) -> list[BaseNode]:
    """Returns the nodes that make the examples searchable, if the environment asks for them."""
    config = checks.index(environment)
    if config is None:
        return []
    if config.kind == retrieval.FAISS:
        faiss_index.module()
    index = IndexCorpus(
        examples=trained_on,
        model=trained.outputs["model"],
        model_blessing=evaluated.outputs["blessing"],
        infra_blessing=served.outputs["blessing"],
        config=config.to_json(),
        corpus_root=os.path.join(environment.embedding_cache, "corpus"),
        code_digest=plan.index_code,
    )
    # A problem of the index must not keep the model from being published.
    index.add_upstream_node(published)
    pushed = PublishIndex(
        index=index.outputs["index"],
        pushed_model=published.outputs["pushed_model"],
        index_dir=environment.index_dir,
        **_publishing(environment, run),
    )
    return [index, pushed]


def _embedding(environment: Environment, plan: Plan, ingested) -> list[BaseNode]:
    """Returns the nodes that embed the images once, if the environment asks for them."""
    if not environment.embed_images:
        return []
    tower = ExportFrozenTower(
        config=plan.tower_config,
        weights=environment.weights,
        weights_digest=plan.weights_digest,
        code_digest=plan.tower_code,
    )
    embedded = EmbedExamples(
        examples=ingested.outputs["examples"],
        model=tower.outputs["model"],
        code_digest=plan.embed_code,
    )
    return [tower, embedded]
