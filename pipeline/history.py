"""What runs before have made: the last blessed model, accepted data and spans to train on.

A `History` makes the nodes of the pipeline that look for it. On one machine they are TFX's
resolvers, with the strategies below.
"""

from typing import Protocol

from tfx.components.evaluator import constants
from tfx.dsl.components.base.base_node import BaseNode
from tfx.dsl.components.common import resolver
from tfx.types.artifact import Artifact
from tfx.types.channel import Channel
from tfx.types.standard_artifacts import Examples, ExampleStatistics, Model, ModelBlessing

from sigline.components.shared.artifact_types import DataAcceptance, IngestReport
from sigline.pipeline.environment import Environment
from sigline.pipeline.planning import Plan
from sigline.schemas import artifacts

# Names of the nodes' inputs and outputs.
MODEL = "model"
BLESSING = "model_blessing"
CANDIDATE = "candidate"
EXAMPLES = "examples"
STATISTICS = "statistics"
REPORT = "ingest_report"
ACCEPTANCE = "acceptance"


class History(Protocol):
    """Makes the nodes that look back; their outputs are named as the constants above."""

    def earlier_spans(self, environment: Environment, plan: Plan) -> BaseNode:
        """Returns a node whose `examples` are those of the window's spans before this run's."""
        ...

    def window(self, environment: Environment, plan: Plan, candidate: Channel) -> BaseNode:
        """Returns a node whose `examples` are the window's; `candidate` are this run's own."""
        ...

    def last_accepted_data(
        self, environment: Environment, plan: Plan, candidate: Channel
    ) -> BaseNode:
        """Returns a node with the `statistics` and `ingest_report` that data is compared with."""
        ...

    def last_blessed_model(self, environment: Environment, candidate: Channel) -> BaseNode:
        """Returns a node with the `model` that the candidate is compared with."""
        ...


class MetadataHistory:
    """Looks into TFX's database of what ran."""

    def earlier_spans(self, environment: Environment, plan: Plan) -> BaseNode:
        """Returns a node whose `examples` are those of the window's spans before this run's."""
        return _accepted_spans(
            "EarlierSpans", environment.spans, plan.span - 1, environment.window - 1
        )

    def window(self, environment: Environment, plan: Plan, candidate: Channel) -> BaseNode:
        """Returns a node whose `examples` are the window's; `candidate` are this run's own."""
        return _accepted_spans(
            "Window", environment.spans, plan.span, environment.window, candidate=candidate
        )

    def last_accepted_data(
        self, environment: Environment, plan: Plan, candidate: Channel
    ) -> BaseNode:
        """Returns a node with the `statistics` and `ingest_report` that data is compared with."""
        del plan
        return resolver.Resolver(
            strategy_class=LastAcceptedData,
            config={"spans": environment.spans},
            candidate=candidate,
            # Without their producers: TFX would take them and this run's for the same channels.
            statistics=Channel(type=ExampleStatistics),
            ingest_report=Channel(type=IngestReport),
            acceptance=_acceptances(),
        ).with_id("LastAcceptedData")

    def last_blessed_model(self, environment: Environment, candidate: Channel) -> BaseNode:
        """Returns a node with the `model` that the candidate is compared with."""
        del environment
        return resolver.Resolver(
            strategy_class=LastOtherBlessedModel,
            candidate=candidate,
            # Without its producer: TFX would take it and the candidate for the same channel.
            model=Channel(type=Model),
            model_blessing=Channel(
                type=ModelBlessing, producer_component_id="EvaluateModel", output_key="blessing"
            ),
        ).with_id("LastBlessedModel")


def _acceptances() -> Channel:
    return Channel(type=DataAcceptance, producer_component_id="CheckData", output_key=ACCEPTANCE)


def _accepted_spans(
    name: str, pattern: str, last: int, num_spans: int, **candidate
) -> resolver.Resolver:
    """Returns a node that finds the examples of accepted spans."""
    return resolver.Resolver(
        strategy_class=AcceptedSpans,
        config={"spans": pattern, "last": last, "num_spans": num_spans},
        # Without its producer: TFX would take it and this run's examples for the same channel.
        examples=Channel(type=Examples),
        acceptance=_acceptances(),
        **candidate,
    ).with_id(name)


class LastOtherBlessedModel(resolver.ResolverStrategy):
    """Resolves the newest blessed model that is not the candidate itself.

    TFX's LatestBlessedModelStrategy returns the candidate as soon as it is blessed: the next run,
    with nothing changed, then compares the model with itself, and no cache ever answers.

    Inputs: `model` and `model_blessing`, all of the pipeline's, and `candidate`, this run's model.
    """

    def resolve_artifacts(
        self, store, input_dict: dict[str, list[Artifact]]
    ) -> dict[str, list[Artifact]]:
        """Returns the inputs with `model` and `model_blessing` cut to the one found, or to none."""
        del store
        candidates = {artifact.id for artifact in input_dict[CANDIDATE]}
        blessings = {
            item.get_int_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_ID_KEY): item
            for item in input_dict[BLESSING]
            if item.get_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY) == 1
        }
        blessed = [
            model
            for model in input_dict[MODEL]
            if model.id in blessings and model.id not in candidates
        ]
        if not blessed:
            return input_dict | {MODEL: [], BLESSING: []}
        newest = max(blessed, key=lambda model: model.id)
        return input_dict | {MODEL: [newest], BLESSING: [blessings[newest.id]]}


class LastAcceptedData(resolver.ResolverStrategy):
    """Resolves the last data that was accepted before this: of the span before, if there are spans.

    Inputs: `statistics`, `ingest_report` and `acceptance`, all of the pipeline's, and `candidate`,
    this run's statistics.
    """

    def __init__(self, spans: str):
        """Takes what the spans are spans of; empty without spans."""
        self._spans = spans

    def resolve_artifacts(
        self, store, input_dict: dict[str, list[Artifact]]
    ) -> dict[str, list[Artifact]]:
        """Returns the inputs with statistics and report cut to those found, or to none."""
        del store
        (current,) = input_dict[CANDIDATE]
        statistics, reports = (
            {artifact.id: artifact for artifact in input_dict[name]}
            for name in (STATISTICS, REPORT)
        )
        pairs = [
            (
                statistics.get(_number(item, artifacts.ACCEPTED_STATISTICS)),
                reports.get(_number(item, artifacts.ACCEPTED_REPORT)),
            )
            for item in _same_spans(input_dict, self._spans)
        ]
        earlier = [
            (own, report)
            for own, report in pairs
            if own is not None and report is not None and self._is_before(own, current)
        ]
        if not earlier:
            return input_dict | {STATISTICS: [], REPORT: [], ACCEPTANCE: []}
        own, report = max(earlier, key=lambda pair: (pair[0].span, pair[0].id))
        return input_dict | {STATISTICS: [own], REPORT: [report], ACCEPTANCE: []}

    def _is_before(self, artifact: Artifact, current: Artifact) -> bool:
        return artifact.span < current.span if self._spans else artifact.id != current.id


def _number(artifact: Artifact, name: str) -> int:
    return artifact.get_int_custom_property(name)


def _same_spans(input_dict: dict[str, list[Artifact]], spans: str) -> list[Artifact]:
    """Returns the acceptances of data of the same spans, or of data without spans."""
    return [
        item
        for item in input_dict[ACCEPTANCE]
        if item.get_string_custom_property(artifacts.ACCEPTED_SPANS) == spans
    ]


class AcceptedSpans(resolver.ResolverStrategy):
    """Resolves the examples of the newest spans that the data gate accepted.

    As TFX's SpanRangeStrategy with a rolling range, which would take spans that were refused too,
    and count them. A span that was ingested several times counts as it was last accepted, but this
    run's is what this run has made or the cache answered.

    Inputs: `examples` and `acceptance`, all of the pipeline's, and perhaps `candidate`, this run's
    examples, which the data gate has accepted.
    """

    def __init__(self, spans: str, last: int, num_spans: int):
        """Takes what counts.

        Args:
            spans: What the spans are spans of.
            last: The newest span to take.
            num_spans: How many accepted spans up to it.
        """
        self._spans = spans
        self._last = last
        self._num_spans = num_spans

    def resolve_artifacts(
        self, store, input_dict: dict[str, list[Artifact]]
    ) -> dict[str, list[Artifact]]:
        """Returns the inputs with examples cut to those found, one of each span."""
        del store
        order = {
            _number(item, artifacts.ACCEPTED_EXAMPLES): item.id
            for item in sorted(_same_spans(input_dict, self._spans), key=lambda item: item.id)
        }
        accepted = sorted(
            (item for item in input_dict[EXAMPLES] if item.id in order),
            key=lambda item: order[item.id],
        )
        by_span = {item.span: item for item in accepted if item.span <= self._last}
        by_span |= {item.span: item for item in input_dict.get(CANDIDATE, ())}
        window = [by_span[span] for span in sorted(by_span)[-self._num_spans :]]
        return input_dict | {EXAMPLES: window, ACCEPTANCE: []}
