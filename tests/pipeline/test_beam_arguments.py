import pytest

from sigline.pipeline import beam_arguments

DATAFLOW = [
    "--runner=DataflowRunner",
    "--project=my-project",
    "--region=europe-west4",
    "--temp_location=gs://my-bucket/tmp",
    "--sdk_container_image=registry.example.com/sigline-worker:1",
    "--sdk_location=container",
]
NO_IMAGE = "--sdk_container_image=none"
UNLISTED = "--experiments=disable_logging_submission_environment"


def test_local_runner_is_the_default_and_packs_nothing():
    assert beam_arguments.complete([]) == ("--runner=FnApiRunner", "--sdk_container_image=none")
    given = ["--runner", "DirectRunner", "--allow_unsafe_triggers"]
    completed = beam_arguments.complete(given)
    assert completed == (*given, "--sdk_container_image=none")
    assert beam_arguments.is_in_process(completed)
    assert beam_arguments.complete(completed) == completed


@pytest.mark.parametrize(
    ("given", "added"),
    [
        (["--runner=FlinkRunner"], {NO_IMAGE, UNLISTED}),
        (["--runner", "apache_beam.x.DaskRunner"], {NO_IMAGE}),
        (
            ["--runner=DirectRunner", "--direct_running_mode=multi_processing"],
            {NO_IMAGE},
        ),
        (["--runner=PortableRunner", "--sdk_container_image=a/b:1"], {UNLISTED}),
        (["--runner=flink", "--experiments=a,disable_logging_submission_environment"], {NO_IMAGE}),
        (["--runner=spark", "--worker_harness_container_image=a/b:1"], {UNLISTED}),
        (DATAFLOW, set()),
        (["--runner=dataflow", *DATAFLOW[1:]], set()),
    ],
)
def test_workers_elsewhere_import_what_tfdv_needs_and_install_nothing(given, added):
    completed = beam_arguments.complete(given)
    assert completed[: len(given)] == tuple(given)
    assert set(completed[len(given) :]) == added | {"--beam_plugins=tfx"}
    assert beam_arguments.complete(completed) == completed
    assert not beam_arguments.is_in_process(completed)


def test_several_processes_need_a_runner_that_tells_them_so():
    with pytest.raises(ValueError, match=r"--runner=DirectRunner and --allow_unsafe_triggers"):
        beam_arguments.complete(["--direct_running_mode=multi_processing"])


def test_what_beam_would_pass_over_is_refused():
    with pytest.raises(ValueError, match=r"FnApiRunner knows\. Received: --direct_num_worker$"):
        beam_arguments.check(["--runner=FnApiRunner", "--direct_num_worker=4"])
    # Flink's job server knows it.
    beam_arguments.check(["--runner=FlinkRunner", "--number_of_execution_retries=3"])
    beam_arguments.check(beam_arguments.complete(["--direct_num_workers=4"]))


def test_dataflow_needs_a_project_a_bucket_and_an_image():
    beam_arguments.check(beam_arguments.complete(DATAFLOW))
    with pytest.raises(ValueError, match="must have --region, --sdk_container_image for Dataflow"):
        beam_arguments.check([x for x in DATAFLOW if "region" not in x and "image" not in x])
    with pytest.raises(ValueError, match="temp_location must be in a bucket"):
        beam_arguments.check([*DATAFLOW, "--temp_location=/tmp"])


@pytest.mark.parametrize("name", ["dataflow", "DATAFLOWRUNNER", "apache_beam.x.DataflowRunner"])
def test_runner_has_one_name_here_in_whatever_form_beam_takes_it(name):
    assert beam_arguments.runner([f"--runner={name}"]) == beam_arguments.DATAFLOW
    with pytest.raises(ValueError, match="for DataflowRunner"):
        beam_arguments.check(["--runner=dataflow"])


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["--runner"], "argument --runner: expected one argument"),
        (["--runner=FnApiRunner", "--direct_running_mode=banana"], "invalid choice: 'banana'"),
        (["--runner=FnApiRunner", "--direct_num_workers=many"], "invalid int value: 'many'"),
    ],
)
def test_wrong_arguments_are_named_in_one_sentence(given, reason, capsys):
    with pytest.raises(ValueError, match=f"beam_args must be arguments.*{reason}"):
        beam_arguments.check(beam_arguments.complete(given))
    assert "usage" not in capsys.readouterr().err


def test_options_of_a_runner_with_its_module_are_known():
    dask = "--runner=apache_beam.runners.dask.dask_runner.DaskRunner"
    beam_arguments.check([dask, "--dask_client_address=tcp://a:8786"])
    with pytest.raises(ValueError, match=r"--runner must be one that can be imported"):
        beam_arguments.check(["--runner=no_such.module.Runner"])
