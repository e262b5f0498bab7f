"""What runs before have made, found by nodes of the pipeline."""

from typing import Protocol

from tfx.dsl.components.base.base_node import BaseNode
from tfx.dsl.components.common import resolver
from tfx.types.channel import Channel
from tfx.types.standard_artifacts import Examples, ExampleStatistics, Model, ModelBlessing

from sigline.components.artifact_types import DataAcceptance, IngestReport
from sigline.pipeline import baseline
from sigline.pipeline.environment import Environment
from sigline.pipeline.planning import Plan


class History(Protocol):
    """Makes the nodes that look back; their outputs are named as in `baseline`."""

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
            strategy_class=baseline.LastAcceptedData,
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
            strategy_class=baseline.LastOtherBlessedModel,
            candidate=candidate,
            # Without its producer: TFX would take it and the candidate for the same channel.
            model=Channel(type=Model),
            model_blessing=Channel(
                type=ModelBlessing, producer_component_id="EvaluateModel", output_key="blessing"
            ),
        ).with_id("LastBlessedModel")


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
