"""What runs before have made on a cluster, found by nodes of the pipeline."""

from tfx.dsl.components.base.base_node import BaseNode
from tfx.types.channel import Channel

from sigline.pipeline.environment import Environment
from sigline.pipeline.kubeflow import tfx_nodes
from sigline.pipeline.planning import Plan


class RecordHistory:
    """Looks into the files that runs leave, see `records`."""

    def earlier_spans(self, environment: Environment, plan: Plan) -> BaseNode:
        """Returns a node whose `examples` are those of the window's spans before this run's."""
        return tfx_nodes.FindEarlierSpans(
            root=environment.root,
            spans=environment.spans,
            span=plan.span,
            num_spans=environment.window - 1,
        ).with_id("EarlierSpans")

    def window(self, environment: Environment, plan: Plan, candidate: Channel) -> BaseNode:
        """Returns a node whose `examples` are the window's; `candidate` are this run's own."""
        return tfx_nodes.FindWindow(
            root=environment.root,
            spans=environment.spans,
            span=plan.span,
            num_spans=environment.window,
            candidate=candidate,
        ).with_id("Window")

    def last_accepted_data(
        self, environment: Environment, plan: Plan, candidate: Channel
    ) -> BaseNode:
        """Returns a node with the `statistics` and `ingest_report` that data is compared with."""
        return tfx_nodes.FindAcceptedData(
            root=environment.root, spans=environment.spans, span=plan.span, candidate=candidate
        ).with_id("LastAcceptedData")

    def last_blessed_model(self, environment: Environment, candidate: Channel) -> BaseNode:
        """Returns a node with the `model` that the candidate is compared with."""
        return tfx_nodes.FindBlessedModel(root=environment.root, candidate=candidate).with_id(
            "LastBlessedModel"
        )
