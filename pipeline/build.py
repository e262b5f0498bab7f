"""Wires the components into a pipeline; wiring only."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import uuid
from pathlib import Path
from typing import Any

import sigline.quiet

sigline.quiet.import_tfx()

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx.components import ExampleValidator, InfraValidator, StatisticsGen
from tfx.dsl.components.base.base_node import BaseNode
from tfx.dsl.components.common import resolver
from tfx.orchestration import metadata
from tfx.orchestration import pipeline as tfx_pipeline
from tfx.proto import infra_validator_pb2
from tfx.types.channel import Channel
from tfx.types.standard_artifacts import Examples, ExampleStatistics, Model, ModelBlessing

from tensorflow_data_validation import StatsOptions  # isort: skip  # After tfx.

from sigline.components.artifact_types import DataAcceptance, IngestReport
from sigline.components.embed.component import EmbedExamples
from sigline.components.evaluate.component import EvaluateModel
from sigline.components.evaluate.options import Options, corruption
from sigline.components.index import faiss_index
from sigline.components.index.component import IndexCorpus
from sigline.components.index.options import IndexConfig
from sigline.components.ingest import reasons, rules
from sigline.components.ingest import transforms as ingest_transforms
from sigline.components.ingest.component import IngestExamples, config_from_json
from sigline.components.ingest.rules import IngestConfig
from sigline.components.ingest.sources import SourceConfig
from sigline.components.publish import signing
from sigline.components.publish.component import PublishIndex, PublishModel
from sigline.components.validate import gate as data_gate
from sigline.components.validate.component import CheckData, ProvideSchema, ReportData
from sigline.components.vocabulary.component import TrainVocabulary
from sigline.pipeline import baseline, spans
from sigline.pipeline.environment import SPAN, TFX, Environment
from sigline.pipeline.tfx_infra import CheckServing
from sigline.pipeline.tfx_tower import ExportFrozenTower
from sigline.pipeline.tfx_trainer import TrainModel
from sigline.schemas import digests, record, retrieval
from sigline.schemas.labels import LabelSet
from sigline.trainer import config as trainer_config
from sigline.trainer import start
from sigline.trainer.config import TrainConfig
from sigline.trainer.weights import checkpoint

_PACKAGE = Path(__file__).resolve().parent.parent
# Of the image tensorflow/serving, the newest that is released.
_TF_SERVING = "2.20.0"
_LIBRARIES = (
    "apache-beam",
    "faiss-cpu",
    "keras",
    "numpy",
    "pillow",
    "py3langid",
    "pyarrow",
    "sentencepiece",
    "simplemma",
    "tensorflow",
    "tensorflow-serving-api",
    "tensorflow-text",
)


def build(environment: Environment) -> tfx_pipeline.Pipeline:
    """Returns the pipeline: ingest, validate, train, evaluate, check, publish.

    TFX's cache knows neither the code of a component nor the bytes behind a path. Both enter as
    digests in parameters, so a change of either is never answered from a stale result.

    Raises:
        ValueError: If the environment, the recipe or an override is wrong.
    """
    if environment.signing_key:
        # Before anything runs.
        signing.signer(environment.signing_key)
    ingest_config = json.dumps(environment.ingest, sort_keys=True)
    ingest_settings = config_from_json(ingest_config)
    limits = data_gate.DataGate(**environment.data_gate)
    _check_limits(limits, "data_gate")
    _check_limits(limits.warning, "data_gate.warn")
    config = trainer_config.override(
        trainer_config.load_recipe(environment.recipe), environment.overrides
    )
    gate = trainer_config.load_gate(environment.recipe)
    data = spans.resolve(environment.input_base, environment.span)
    schema_file = _schema_file(environment)

    pattern = environment.input_base if SPAN in environment.input_base else ""
    before = environment.window - 1
    # Nodes of their own only where they are asked for.
    earlier = [_accepted_spans("EarlierSpans", pattern, data.span - 1, before)] if before else []
    ingested = IngestExamples(
        input_base=data.base,
        config=ingest_config,
        span=data.span,
        version=data.version,
        earlier=earlier[0].outputs[baseline.EXAMPLES] if earlier else None,
        input_digest=_input_digest(data.base, ingest_settings),
        code_digest=_code_digest(
            "schemas", "components/ingest", "components/files.py", "components/outputs.py"
        ),
    )
    schema = ProvideSchema(
        schema_file=str(schema_file), schema_digest=digests.file_digest(schema_file)
    )
    statistics = StatisticsGen(
        examples=ingested.outputs["examples"],
        schema=schema.outputs["schema"],
        # Without semantic domains the checks of images and captions vanish silently.
        stats_options=StatsOptions(enable_semantic_domain_stats=True),
    )
    validator = ExampleValidator(
        statistics=statistics.outputs["statistics"], schema=schema.outputs["schema"]
    )
    validate_digest = _code_digest("schemas", "components/validate")
    last_accepted = resolver.Resolver(
        strategy_class=baseline.LastAcceptedData,
        config={"spans": pattern},
        candidate=statistics.outputs["statistics"],
        # Without their producers: TFX would take them and this run's for the same channels.
        statistics=Channel(type=ExampleStatistics),
        ingest_report=Channel(type=IngestReport),
        acceptance=_acceptances(),
    ).with_id("LastAcceptedData")
    reported = ReportData(
        ingest_report=ingested.outputs["report"],
        anomalies=validator.outputs["anomalies"],
        statistics=statistics.outputs["statistics"],
        schema=schema.outputs["schema"],
        earlier_report=last_accepted.outputs[baseline.REPORT],
        earlier_statistics=last_accepted.outputs[baseline.STATISTICS],
        config=json.dumps(environment.data_gate, sort_keys=True),
        code_digest=validate_digest,
    )
    checked = CheckData(
        examples=ingested.outputs["examples"],
        statistics=statistics.outputs["statistics"],
        ingest_report=ingested.outputs["report"],
        report=reported.outputs["report"],
        spans=pattern,
        code_digest=validate_digest,
    )
    window, trained_on = [], ingested.outputs["examples"]
    if before:
        candidate = ingested.outputs["examples"]
        window = [
            _accepted_spans("Window", pattern, data.span, environment.window, candidate=candidate)
        ]
        window[0].add_upstream_node(checked)
        trained_on = window[0].outputs[baseline.EXAMPLES]
    vocabulary = TrainVocabulary(
        examples=trained_on,
        recipe=json.dumps(dataclasses.asdict(config.text_tower), sort_keys=True),
        code_digest=_code_digest("schemas", "components/vocabulary", "trainer"),
    )
    vocabulary.add_upstream_node(checked)
    weights_digest = _weights_digest(environment, config)
    embedding = _embedding(environment, config, weights_digest, ingested)
    trained = TrainModel(
        examples=embedding[-1].outputs["embedded"] if embedding else trained_on,
        vocabulary=vocabulary.outputs["vocabulary"],
        config=config.to_json(),
        weights=environment.weights,
        weights_digest=weights_digest,
        teachers=json.dumps(environment.teachers, sort_keys=True),
        teacher_digests=_teacher_digests(environment, config),
        checkpoint_root=environment.checkpoint_root,
        code_digest=_code_digest("schemas", "trainer", "pipeline/tfx_trainer.py"),
    ).with_id("Trainer")
    last_blessed = resolver.Resolver(
        strategy_class=baseline.LastOtherBlessedModel,
        candidate=trained.outputs["model"],
        # Without its producer: TFX would take it and the candidate for the same channel.
        model=Channel(type=Model),
        model_blessing=Channel(
            type=ModelBlessing, producer_component_id="EvaluateModel", output_key="blessing"
        ),
    ).with_id("LastBlessedModel")
    evaluated = EvaluateModel(
        examples=ingested.outputs["examples"],
        model=trained.outputs["model"],
        model_run=trained.outputs["model_run"],
        baseline=last_blessed.outputs["model"],
        trained_on=trained_on,
        gate=gate.to_json(),
        options=_evaluation(environment).to_json(),
        embedding_cache=environment.embedding_cache,
        code_digest=_code_digest(
            "schemas", "components/evaluate", "components/files.py", "components/served_model.py"
        ),
    )
    served = _infra_check(environment, gate, ingested, trained, evaluated)
    published = PublishModel(
        model=trained.outputs["model"],
        model_blessing=evaluated.outputs["blessing"],
        infra_blessing=served.outputs["blessing"],
        serving_dir=environment.serving_dir,
        **_publishing(environment),
    )
    return tfx_pipeline.Pipeline(
        pipeline_name=environment.pipeline_name,
        pipeline_root=environment.pipeline_root,
        components=[
            *earlier,
            ingested,
            schema,
            statistics,
            validator,
            last_accepted,
            reported,
            checked,
            *window,
            vocabulary,
            *embedding,
            trained,
            last_blessed,
            evaluated,
            served,
            published,
            *_indexed(environment, trained_on, trained, evaluated, served, published),
        ],
        enable_cache=True,
        metadata_connection_config=metadata.sqlite_metadata_connection_config(
            environment.metadata_path
        ),
        beam_pipeline_args=list(environment.beam_args),
    )


def _publishing(environment: Environment) -> dict[str, Any]:
    """Returns what the nodes that publish have in common."""
    return {
        "keep_versions": environment.keep_versions or 0,
        "signing_key": environment.signing_key,
        # They look at their folder each time.
        "run_nonce": uuid.uuid4().hex,
    }


def _infra_check(environment: Environment, gate, ingested, trained, evaluated) -> BaseNode:
    """Returns the node that serves the candidate: sigline's own, or TFX's on a cluster."""
    if environment.infra == TFX:
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
        tolerance=gate.max_parity_difference,
        max_memory_mib=float(environment.serving_memory_mib or 0),
        max_latency_ms=float(environment.serving_latency_ms or 0),
        code_digest=_code_digest(
            "schemas", "serving", "pipeline/tfx_infra.py", "pipeline/serve_command.py", _cli_file()
        ),
    )


def _indexed(
    environment: Environment, trained_on, trained, evaluated, served, published
) -> list[BaseNode]:
    """Returns the nodes that make the examples searchable, if the environment asks for them."""
    if environment.index is None:
        return []
    try:
        config = IndexConfig(**environment.index)
    except TypeError as error:
        known = ", ".join(field.name for field in dataclasses.fields(IndexConfig))
        raise ValueError(f"index has the keys {known}. Received: {error}") from None
    if unknown := sorted(set(config.splits) - set(record.SPLITS)):
        raise ValueError(
            f"index.splits must name some of {', '.join(record.SPLITS)}. Received: {unknown}"
        )
    if config.kind == retrieval.FAISS:
        faiss_index.module()
    index = IndexCorpus(
        examples=trained_on,
        model=trained.outputs["model"],
        model_blessing=evaluated.outputs["blessing"],
        infra_blessing=served.outputs["blessing"],
        config=config.to_json(),
        corpus_root=os.path.join(environment.embedding_cache, "corpus"),
        code_digest=_code_digest(
            "schemas", "components/index", "components/files.py", "components/served_model.py"
        ),
    )
    # What it finds wrong with an index must not keep the model from being published.
    index.add_upstream_node(published)
    pushed = PublishIndex(
        index=index.outputs["index"],
        pushed_model=published.outputs["pushed_model"],
        index_dir=environment.index_dir,
        **_publishing(environment),
    )
    return [index, pushed]


def _schema_file(environment: Environment) -> Path:
    """Returns the curated schema, the environment's own if it names one."""
    if not environment.schema:
        return _PACKAGE / "schemas" / "image_text.pbtxt"
    path = Path(environment.schema)
    try:
        text_format.Parse(path.read_text(), schema_pb2.Schema())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ValueError(
            f"schema must be a schema in TFDV's text form. Received: {path}: {error}"
        ) from None
    return path


def _evaluation(environment: Environment) -> Options:
    """Returns what is measured; files of prompts are read here, so that the cache knows them."""
    given = dict(environment.evaluation)
    files, corrupt = given.pop("labels", {}), given.pop("corrupt", [])
    probes = given.pop("probes", False)
    kinds = isinstance(files, dict), isinstance(corrupt, list), isinstance(probes, bool)
    if given or not all(kinds):
        raise ValueError(
            "evaluation has labels (files by name), probes (true or false) and corrupt (a list). "
            f"Received: evaluation={environment.evaluation}"
        )
    labels = {}
    for name, path in files.items():
        try:
            labels[str(name)] = LabelSet.from_json(Path(path).read_text())
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"evaluation.labels must be label sets. {name}: {error}") from None
    asked = tuple(corruption(str(text), "evaluation.corrupt") for text in corrupt)
    return Options(labels, probes, asked)


def _check_limits(limits: data_gate.DataGate, name: str) -> None:
    """Refuses limits of what there is not, before anything runs."""
    columns = (record.KEY, record.TEXT, record.LANGUAGE, record.SOURCE, record.WIDTH, record.HEIGHT)
    known = {
        "max_shares": reasons.ALL,
        "max_change": (*reasons.ALL, data_gate.REJECTED),
        "max_shift": rules.PROFILED,
        "max_drift": (*columns, record.LABEL, record.TAG),
        "max_skew": (*columns, record.LABEL, record.TAG),
    }
    for limit, names in known.items():
        if unknown := sorted(set(getattr(limits, limit)) - set(names)):
            raise ValueError(
                f"{name}.{limit} must name some of {', '.join(names)}. Received: {unknown}"
            )


def _acceptances() -> Channel:
    return Channel(
        type=DataAcceptance, producer_component_id="CheckData", output_key=baseline.ACCEPTANCE
    )


def _accepted_spans(
    name: str, pattern: str, last: int, num_spans: int, **candidate
) -> resolver.Resolver:
    """Returns a node that finds the examples of accepted spans."""
    return resolver.Resolver(
        strategy_class=baseline.AcceptedSpans,
        config={"spans": pattern, "last": last, "num_spans": num_spans},
        # Without its producer: TFX would take it and this run's examples for the same channel.
        examples=Channel(type=Examples),
        acceptance=_acceptances(),
        **candidate,
    ).with_id(name)


def _embedding(
    environment: Environment, config: TrainConfig, weights_digest: str, ingested
) -> list:
    """Returns the nodes that embed the images once, if the environment asks for them."""
    if not environment.embed_images:
        return []
    if not environment.weights:
        raise ValueError(
            "The environment's `embed_images` needs `weights` with the frozen image tower. "
            "Received: weights=''"
        )
    start.check_embeddable(config)
    tower = ExportFrozenTower(
        # Nothing else, so that another rate or other steps embed nothing again.
        config=start.tower_config(config).to_json(),
        weights=environment.weights,
        weights_digest=weights_digest,
        code_digest=_code_digest("schemas", "trainer", "pipeline/tfx_tower.py"),
    )
    names = "components/embed", "components/files.py", "components/served_model.py"
    embedded = EmbedExamples(
        examples=ingested.outputs["examples"],
        model=tower.outputs["model"],
        code_digest=_code_digest("schemas", *names),
    )
    return [tower, embedded]


def _input_digest(base: str, config: IngestConfig) -> str:
    """Returns the digest of the bytes that ingest reads, and of scorers that are not sigline's."""
    paths = ingest_transforms.input_files(base, config.source)
    for other in config.eval_sets:
        try:
            paths = paths + ingest_transforms.input_files(other, SourceConfig())
        except ValueError as error:
            raise ValueError(f"ingest.eval_sets, {other}: {error}") from None
    for other in config.earlier:
        manifest = Path(other) / record.MANIFEST_FILE
        if not manifest.is_file():
            raise ValueError(f"ingest.earlier must be folders of examples. Received: {other}")
        # It holds the digests of the shards.
        paths = [*paths, str(manifest)]
    named = (config.filters.vocabulary, config.tags.entries)
    paths = [*paths, *(path for path in named if path)]
    for name in config.filters.scorers:
        found = importlib.util.find_spec(name.partition(":")[0])
        if found is not None and found.origin and Path(found.origin).is_file():
            paths = [*paths, found.origin]
    files = {path: digests.file_digest(path) for path in paths}
    classes = Path(base) / record.CLASSES_FILE
    if classes.is_file():
        files[str(classes)] = digests.file_digest(classes)
    return digests.json_digest(files)


def _cli_file() -> str:
    """Returns where the command line lies below the package: a wheel has it at the top."""
    return "sigline/cli.py" if (_PACKAGE / "sigline").is_dir() else "cli.py"


def _code_digest(*names: str) -> str:
    """Returns the digest of source files and of the versions of what they compute with."""
    versions = {name: _version(name) for name in _LIBRARIES}
    return digests.json_digest([digests.source_digest(_PACKAGE, names), versions])


def _version(name: str) -> str:
    """Returns the version of a library; empty for one that nobody asked for."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _weights_digest(environment: Environment, config: TrainConfig) -> str:
    """Returns the digest of the weights that training starts from; empty if it starts from none."""
    if bool(environment.weights) != bool(config.pretrained):
        raise ValueError(
            "The environment's `weights` and the recipe's `pretrained` must be given together. "
            f"Received: weights={environment.weights!r}, pretrained={list(config.pretrained)}"
        )
    return checkpoint.load(environment.weights).digest() if environment.weights else ""


def _teacher_digests(environment: Environment, config: TrainConfig) -> str:
    """Returns the digests of the teachers' weights by name, as JSON."""
    if set(environment.teachers) != set(config.teachers):
        raise ValueError(
            "The environment's `teachers` must be those of the recipe. Received: "
            f"{', '.join(sorted(environment.teachers)) or 'none'}; the recipe's: "
            f"{', '.join(config.teachers) or 'none'}"
        )
    found = {name: checkpoint.load(path).digest() for name, path in environment.teachers.items()}
    return json.dumps(found, sort_keys=True)
