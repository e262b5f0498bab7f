"""No function of the trainer is converted by AutoGraph, which takes longer than to trace it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted(
    path
    for path in (*ROOT.glob("trainer/**/*.py"), *ROOT.glob("components/index/*.py"))
    if "tf.function" in path.read_text()
)


def _is_tf_function(node: ast.expr) -> bool:
    return ast.unparse(node) == "tf.function"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_functions_are_traced_as_they_are(path):
    tree = ast.parse(path.read_text())
    uses = sum(_is_tf_function(node) for node in ast.walk(tree) if isinstance(node, ast.expr))
    plain = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (_is_tf_function(node.func) or any(map(_is_tf_function, node.args)))
        and any(
            word.arg == "autograph" and ast.unparse(word.value) == "False" for word in node.keywords
        )
    ]
    assert uses == len(plain) > 0
