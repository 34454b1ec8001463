"""Rules that hold for every source file: no code from data, and no check that `python -O` would leave out."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = ("app", "pipeline_ext", "backend", "kvcache", "quant", "assets")
FORBIDDEN_MODULES = frozenset(
    {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "jsonpickle"}
)
FORBIDDEN_CALLS = frozenset({"eval", "exec", "__import__"})
# A method for tests, which nothing in the product calls: there, asserting is the point.
MAY_ASSERT = "check_integrity"
OBJECT_COLLECTIVE = re.compile(r"(_object_list|_object)$")


def violations(source: str) -> Iterator[str]:
    """What in a module breaks a rule, with its line."""
    tree = ast.parse(source)
    checks = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == MAY_ASSERT]
    allowed = {inner for check in checks for inner in ast.walk(check) if isinstance(inner, ast.Assert)}
    for node in ast.walk(tree):
        if node not in allowed:
            yield from (f"line {getattr(node, 'lineno', 0)}: {problem}" for problem in _problems(node))


def _problems(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Import(names):
            yield from (f"import {alias.name}" for alias in names if _root(alias.name) in FORBIDDEN_MODULES)
        case ast.ImportFrom(module=str(module), names=names):
            if _root(module) in FORBIDDEN_MODULES or "pickle" in module:
                yield f"from {module} import"
            yield from (f"{module}.{alias.name}" for alias in names if module == "torch" and alias.name == "load")
        case ast.Attribute(value=ast.Name("torch"), attr="load"):
            yield "torch.load"
        case ast.Attribute(attr=str(name)) if OBJECT_COLLECTIVE.search(name):
            yield f"object collective {name}"
        case ast.keyword(arg="trust_remote_code"):
            yield "trust_remote_code"
        case ast.keyword(arg="allow_pickle"):
            yield "allow_pickle"
        case ast.keyword(arg="shell", value=ast.Constant(True)):
            yield "shell=True"
        case ast.Call(func=ast.Name(name)) if name in FORBIDDEN_CALLS:
            yield f"{name}()"
        case ast.Assert():
            yield "assert"
        case _:
            return


def _root(module: str) -> str:
    return module.partition(".")[0]


def test_no_source_breaks_a_rule() -> None:
    files = [path for folder in PRODUCT for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    found = [f"{path.relative_to(ROOT)}, {one}" for path in files for one in violations(path.read_text("utf-8"))]
    assert found == []


def test_the_product_does_not_call_what_only_tests_may() -> None:
    # The simulator runs for tests, and by hand.
    sources = {
        path: path.read_text("utf-8")
        for folder in PRODUCT
        for path in (ROOT / folder).rglob("*.py")
        if "simulator" not in path.parts
    }
    # A check may go on to another owner's; nothing else does.
    callers = [
        path.name for path, text in sources.items() if f".{MAY_ASSERT}(" in text and f"def {MAY_ASSERT}" not in text
    ]
    assert callers == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import os, marshal as m",
        "from cloudpickle import dumps",
        "from torch import load",
        "from multiprocessing.reduction import ForkingPickler; import dill.source",
        "import torch\nmodel = torch.load('x', weights_only=True)",
        "dist.broadcast_object_list(items)",
        "dist.all_gather_object(out, item)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "numpy.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "value = eval(text)",
        "def f(x):\n    assert x > 0",
    ],
)
def test_the_rules_see_what_they_forbid(source: str) -> None:
    assert list(violations(source))
