import pytest

from sigline.pipeline import environment

GOOD = "pipeline_name: p\nroot: runs/x\ninput_base: data\nrecipe: siglip_demo\n"


def _load(tmp_path, text):
    path = tmp_path / "e.yaml"
    path.write_text(text)
    return environment.load(path)


def test_paths_are_absolute_and_serving_defaults_below_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = _load(tmp_path, GOOD)
    assert loaded.root == str(tmp_path / "runs/x")
    assert loaded.serving_dir == str(tmp_path / "runs/x/serving")
    assert loaded.beam_args[0] == "--runner=FnApiRunner"


def test_teachers_are_paths_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teachers = _load(tmp_path, GOOD + "teachers: {a: vit}\nembed_images: true\n").teachers
    assert teachers == {"a": str(tmp_path / "vit")}
    with pytest.raises(ValueError, match=r"teachers\.a must be a text"):
        _load(tmp_path, GOOD + "teachers: {a: 3}\n")
    with pytest.raises(ValueError, match="teachers must be paths by name"):
        _load(tmp_path, GOOD + "teachers: {a: ''}\n")
    with pytest.raises(ValueError, match="embed_images must be true or false"):
        _load(tmp_path, GOOD + "embed_images: 1\n")


def test_weights_are_a_path_only_where_they_are_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _load(tmp_path, GOOD).weights == ""
    assert _load(tmp_path, GOOD + "weights: vit\n").weights == str(tmp_path / "vit")


def test_runner_stays_local_beside_other_arguments(tmp_path):
    loaded = _load(tmp_path, GOOD + "beam_args: [--direct_num_workers=2]\n")
    assert loaded.beam_args[:2] == ("--runner=FnApiRunner", "--direct_num_workers=2")
    loaded = _load(tmp_path, GOOD + "beam_args: [--runner=DataflowRunner]\n")
    assert loaded.beam_args == ("--runner=DataflowRunner", "--beam_plugins=tfx")


def test_variables_are_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("BUCKET", "/mnt/b")
    assert _load(tmp_path, GOOD.replace("runs/x", "$BUCKET/x")).root == "/mnt/b/x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "sevring_dir: x\n", "Unknown key sevring_dir. Known keys: pipeline_name"),
        (GOOD.replace("recipe: siglip_demo\n", ""), "Missing key recipe"),
        (GOOD + "overrides: steps=3\n", "overrides must be a list"),
        (GOOD + "ingest: 3\n", "ingest must be keys and values"),
        (GOOD.replace("p\n", "3\n", 1), "pipeline_name must be a text"),
    ],
)
def test_wrong_environment_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        _load(tmp_path, text)


def test_missing_environment_names_the_packaged_ones():
    with pytest.raises(ValueError, match="one of: dataflow, flink, kubeflow, local, spark, vertex"):
        environment.load("nothing")


def test_active_environment_is_the_packaged_local(monkeypatch):
    monkeypatch.delenv(environment.VARIABLE, raising=False)
    assert environment.active().recipe == "siglip_demo"


def test_number_of_versions_to_keep(tmp_path):
    assert _load(tmp_path, GOOD).keep_versions is None
    assert _load(tmp_path, GOOD + "keep_versions: 3\n").keep_versions == 3
    for name in ("keep_versions", "serving_memory_mib", "serving_latency_ms"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1"):
            _load(tmp_path, GOOD + f"{name}: 0\n")


def test_folder_in_an_object_store_stays_as_it_is(tmp_path):
    assert _load(tmp_path, GOOD + "serving_dir: gs://bucket/models\n").serving_dir == (
        "gs://bucket/models"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("infra: docker\n", "infra must be sigline or tfx"),
        ("infra: tfx\nserving_memory_mib: 10\n", "need infra: sigline"),
        ("infra: tfx\nserving_latency_ms: 10\n", "need infra: sigline"),
        ("index: true\n", "index must be keys and values. "),
    ],
)
def test_wrong_choices_of_checks_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        _load(tmp_path, GOOD + text)
