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
        (["--runner=FlinkRunner"], {"--sdk_container_image=none", UNLISTED}),
        (["--runner", "apache_beam.x.DaskRunner"], {"--sdk_container_image=none"}),
        (
            ["--runner=DirectRunner", "--direct_running_mode=multi_processing"],
            {"--sdk_container_image=none"},
        ),
        (["--runner=PortableRunner", "--sdk_container_image=a/b:1"], {UNLISTED}),
        (DATAFLOW, set()),
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
    with pytest.raises(ValueError, match=r"that Beam knows\. Received: direct_num_worker$"):
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
