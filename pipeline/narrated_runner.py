"""Runs a pipeline on this machine as TFX's local runner does, and says which node is at work."""

import contextlib
import datetime
import shutil
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

from tfx.dsl.compiler import constants
from tfx.orchestration import metadata
from tfx.orchestration.local import runner_utils
from tfx.orchestration.local.local_dag_runner import LocalDagRunner
from tfx.orchestration.portable import launcher, runtime_parameter_utils
from tfx.proto.orchestration import pipeline_pb2

from sigline import quiet
from sigline.schemas import full_disk, progress

_OF_TFX = ("StatisticsGen", "ExampleValidator")


def new_run_id() -> str:
    """Returns a name for a run: when it begins, as TFX names runs, and what no other run has.

    Two runs may begin at the same time, and a clock may step back.
    """
    return f"{datetime.datetime.now().isoformat()}-{uuid.uuid4().hex[:8]}"


@contextlib.contextmanager
def _cleared_if_full(node: Path) -> Iterator[None]:
    """Removes what a node wrote if the disk was full, so that there is room for what follows.

    Args:
        node: The folder of the outputs of all of its executions.
    """
    before = set(node.glob("*/*"))
    try:
        yield
    except Exception as error:
        if full_disk.sentence(error) is not None:
            for written in set(node.glob("*/*")) - before:
                shutil.rmtree(written, ignore_errors=True)
        raise


class NarratedRunner(LocalDagRunner):
    """A `LocalDagRunner` with a part of the progress for each node.

    Attributes:
        run_id: The name of the run, no other's; None where nothing has run.
    """

    def __init__(self) -> None:
        """Has run nothing yet."""
        super().__init__()
        self.run_id: str | None = None

    def run_with_ir(
        self,
        pipeline: pipeline_pb2.Pipeline,
        run_options: pipeline_pb2.RunOptions | None = None,
    ) -> None:
        """Runs the nodes in their order; part of a pipeline runs as in TFX, without a word."""
        if run_options is not None:
            super().run_with_ir(pipeline, run_options)
            return
        self.run_id = new_run_id()
        run_id = {constants.PIPELINE_RUN_ID_PARAMETER_NAME: self.run_id}
        with warnings.catch_warnings():
            # TFX 1.21 asks protobuf for labels of fields, in C; the warning is laid on its caller.
            warnings.simplefilter("ignore", DeprecationWarning)
            runtime_parameter_utils.substitute_runtime_parameter(pipeline, run_id)
        config = runner_utils.extract_local_deployment_config(pipeline)
        connections = config.metadata_connection_config
        connection = getattr(connections, str(connections.WhichOneof("connection_config")))
        for number, item in enumerate(pipeline.nodes, 1):
            node = item.pipeline_node
            name = node.node_info.id
            launched = launcher.Launcher(
                pipeline_node=node,
                mlmd_connection=metadata.Metadata(connection),
                pipeline_info=pipeline.pipeline_info,
                pipeline_runtime_spec=pipeline.runtime_spec,
                executor_spec=runner_utils.extract_executor_spec(config, name),
                custom_driver_spec=runner_utils.extract_custom_driver_spec(config, name),
            )
            title = f"{name} ({number} of {len(pipeline.nodes)})"
            # Native code of TFX's own nodes writes its log there, whatever is set.
            hidden = quiet.hidden_stderr() if name in _OF_TFX else contextlib.nullcontext()
            root = pipeline.runtime_spec.pipeline_root.field_value.string_value
            whole = _cleared_if_full(Path(root, name))
            with progress.part(title, is_silent_if_brief=False), hidden, whole:
                launched.launch()
