"""What is wrong with arguments is said in a sentence, before TensorFlow or TFX is imported."""

import json
import subprocess
import sys

import pytest

from sigline import arguments, cli, quiet


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with `file`, `folder` and `examples`; importing TensorFlow ends a test."""

    def imported():
        raise AssertionError("TensorFlow is imported before the arguments are checked")

    monkeypatch.setattr(quiet, "import_tensorflow", imported)
    monkeypatch.setattr(quiet, "import_tfx", imported)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x\n")
    (tmp_path / "flat").write_text('{"names": ["a", "b"]}')
    (tmp_path / "circle").write_text('{"names": ["a", "b"], "parents": [1, 0]}')
    (tmp_path / "folder").mkdir()
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "a.gz").write_bytes(b"")
    (tmp_path / "examples" / "manifest.json").write_text("{}")
    return tmp_path


TRAIN = "train --recipe siglip_demo --data examples --output o --vocabulary file"
SEMANTIC = "train --recipe semantic_21k_b16 --data examples --output o"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"{TRAIN} --set learning_rate=1", "Did you mean optimizer.learning_rate?"),
        (f"{TRAIN} --set lr=1", "Did you mean optimizer.learning_rate?"),
        (f"{TRAIN} --set optimizer.name=adam", "Did you mean adamw?"),
        (f"{TRAIN} --set steps=many", "steps must be a whole number. Received: steps=many"),
        (f"{TRAIN} --labels file", "--labels must be a label set"),
        (SEMANTIC, "needs a tree of the classes: `parents` in the label set"),
        (f"{SEMANTIC} --labels flat", "Received: a label set without parents"),
        (f"{SEMANTIC} --labels circle", "not round in a circle. Received: 0 -> 1 -> 0"),
        (f"{TRAIN} --labels folder", "--labels must be a file; a folder is there"),
        (f"{TRAIN} --teacher a=folder", "--teacher must name those of the recipe: none"),
        (TRAIN.replace("examples", "none"), "--data must be a folder; there is no such folder"),
        (TRAIN.replace("examples", "folder"), "--data must be a folder that holds *.gz"),
        (TRAIN.replace("examples", "file"), "--data must be a folder; a file is there"),
        (TRAIN.replace("_demo", "_dmeo"), "Did you mean siglip_demo?"),
        (TRAIN.replace("output o", "output file"), "--output must be a folder"),
        (TRAIN.replace("vocabulary file", "vocabulary folder"), "--vocabulary must be a file"),
        (TRAIN.replace("siglip_demo", "lit_b16"), "--weights must be given"),
        ("gate --model none --data examples", "--model must be the folder of a SavedModel"),
        ("soup --weights none --output o --method uniform", "--weights must exist"),
        ("export --weights none --output o", "--weights must exist"),
        ("export --weights folder --output o", "--weights must be a folder with parameters"),
        ("weights import none --output o", "SOURCE must exist"),
        ("weights import folder --output o", "SOURCE must be a folder with parameters"),
        ("weights export none --output o", "SOURCE must exist"),
        ("weights export folder --output file", "--output must not exist yet"),
        ("data embed --weights none --data examples --output o", "--weights must exist"),
        ("data select --data folder --output o", "--data must be a folder that holds manifest"),
        ("data select --data examples --output o", "must say what to choose"),
        ("data select --data examples --output o --clusters 0", "clusters"),
        ("data schema --statistics folder --output o", "--statistics must be a folder with"),
        ("data fetch --input none --output o", "--input must be a folder"),
        ("data fetch --input folder --output o --retries -1", "retries must be at least 0"),
        ("index --model none --data examples --output o", "--model must be a folder"),
        ("index --model none --data examples --output o --top 3", "top must be at least 10"),
        ("search --index none a", "--index must be a folder"),
        ("search --index folder a", "There is no index: --index must be the folder of one"),
        ("search --index folder --image none", "--image must be a file"),
        ("ui --index folder --top 0", "--top must be at least 1"),
        ("serve --base-path none", "must hold a version directory such as 1/saved_model.pb"),
        ("serve --model-config-file file", "must be a model config of TF Serving"),
        ("serve --base-path folder --verify-key none", "--verify-key must be a file"),
        ("ask --image folder a", "--image must be a file; a folder is there"),
        ("ask --images file a", "--images must be a folder; a file is there"),
        ("embed --texts none --output x.npz", "--texts must be a file"),
        ("rollback none", "BASE must be a folder"),
        ("versions file", "BASE must be a folder; a file is there"),
        ("lineage none", "MODEL must be a folder"),
        ("kubeflow dry-run none --volume folder", "PACKAGE must be a file"),
        ("run --environment none", "must be a YAML file or one of"),
        ("demo --output file", "--output must be a folder"),
        ("recipes siglip_smal", "Did you mean siglip_small?"),
    ],
)
def test_mistakes_are_found_without_tensorflow(place, capsys, command, message):
    assert cli.main(command.split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("sigline: ")


WRONG_SECTIONS = [
    ({"learning_rate": 1}, "It is set by overrides: [optimizer.learning_rate=VALUE]."),
    ({"overides": []}, "Did you mean overrides?"),
    ({"overrides": ["learning_rate=1"]}, "Did you mean optimizer.learning_rate?"),
    ({"data_gate": {"max_rejected": 0.5}}, "Did you mean data_gate.max_rejected_share?"),
    ({"ingest": {"eval_shar": 0.5}}, "Did you mean ingest.eval_share?"),
    ({"ingest": {"source": {"fromat": "csv"}}}, "Did you mean ingest.source.format?"),
    ({"gate": {"minimun": {}}}, "Did you mean gate.minimum?"),
    ({"index": {"knd": "exact"}}, "Did you mean index.kind?"),
    ({"evaluation": {"probe": True}}, "Did you mean evaluation.probes?"),
    ({"recipe": "siglip_dmeo"}, "Did you mean siglip_demo?"),
]
# The tasks of a cluster see other folders than those of this machine.
WRONG_PATHS = [
    ({"input_base": "none"}, "input_base must be a folder with pairs"),
    ({"input_base": "folder"}, "input_base must be a folder with pairs"),
    ({"schema": "none"}, "schema must be a path that is there"),
    ({"weights": "folder"}, "`weights` and the recipe's `pretrained` must be given together"),
    ({"root": "file"}, "root must be a folder"),
]


@pytest.mark.parametrize(
    ("command", "lines", "message"),
    [
        *(("run", *item) for item in (*WRONG_SECTIONS, *WRONG_PATHS)),
        *(("kubeflow compile", *item) for item in WRONG_SECTIONS),
        ("kubeflow compile", {"kubeflow": {"imagee": "a"}}, "Did you mean kubeflow.image?"),
    ],
)
def test_mistakes_of_environments_are_found_without_tensorflow(
    place, capsys, command, lines, message
):
    values = {"pipeline_name": "x", "root": "root", "input_base": "examples"}
    values |= {"recipe": "siglip_demo", "kubeflow": {"image": "a/b:1"}} | lines
    (place / "e.yaml").write_text(json.dumps(values))
    assert cli.main([*command.split(), "--environment", "e.yaml"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["a: [b", "- a list", "1: x", "just text"])
def test_an_environment_that_is_no_mapping_is_named(place, capsys, text):
    (place / "e.yaml").write_text(text)
    assert cli.main(["run", "--environment", "e.yaml"]) == 2
    assert capsys.readouterr().err.startswith("sigline: e.yaml must ")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("trian", "Did you mean train?"),
        ("weights imprt", "Did you mean import?"),
        ("run --enviroment x", "Did you mean --environment?"),
        ("serve --base-path x --max-item-count 3", "Did you mean --max-items?"),
        ("serve --base-path x --max-items 0", "must be a whole number of at least 1, not '0'"),
        ("serve --base-path x --port 99999", "must be a port, 0 to 65535, not '99999'"),
    ],
)
def test_options_and_commands_are_suggested(capsys, command, message):
    with pytest.raises(SystemExit) as caught:
        cli.main(command.split())
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_option_of_another_command_is_refused_by_the_command_itself(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["ask", "--port", "1", "a red ring"])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("usage: sigline ask ")
    assert said.endswith("sigline ask: error: unrecognized arguments: --port\n")


def test_every_command_has_quiet(capsys):
    parser = cli._parser()

    def leaves(parser, words):
        below = [a for a in parser._actions if isinstance(a, cli._SUBCOMMANDS)]
        for action in below:
            for name, command in action.choices.items():
                yield from leaves(command, [*words, name])
        if not below:
            yield words, parser

    commands = list(leaves(parser, []))
    assert len(commands) > 25
    for words, command in commands:
        assert "--quiet" in command.format_help(), words


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("8500", 8500), ("65535", 65535)])
def test_ports(text, number):
    assert arguments.port(text) == number


def test_a_process_that_refuses_arguments_has_imported_no_large_library(tmp_path):
    (tmp_path / "a.gz").write_bytes(b"")
    code = (
        "import sys; from sigline import cli; code = cli.main(sys.argv[1:]);"
        "print(code, sorted({'tensorflow', 'apache_beam', 'tfx', 'keras'} & set(sys.modules)))"
    )
    arguments = ["train", "--recipe", "siglip_demo", "--data", tmp_path, "--output", tmp_path / "o"]
    arguments += ["--vocabulary", tmp_path / "a.gz", "--set", "learning_rate=1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True
    )
    assert done.stdout == "2 []\n"
