"`help` says what the comments of a signature say, for every public function, and costs next to nothing."
import importlib, inspect, pkgutil, pydoc, subprocess, sys
from pathlib import Path

import pytest
from fastcore.docments import docments

import amcl_suite

ROOT = Path(__file__).resolve().parents[1]
WATCHES = ("amcl_suite",)
PARTS = [part.name for part in pkgutil.iter_modules(amcl_suite.__path__) if part.ispkg]


def python(code: str, *options: str) -> str:
    "Run code in a fresh process; return what it prints."
    return subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True,
                          check=True, cwd=ROOT).stdout


def test_help_of_a_function_and_a_class():
    from amcl_suite.ensembles.objectives import Decomposition
    from amcl_suite.mcl.assignment import annealed
    text = pydoc.render_doc(annealed, renderer=pydoc.plaintext)
    for line in ("costs : Tensor", "    `(..., n_hyps)`, lower is better",
                 "target_mask : Tensor | None, default None", "Returns"):
        assert line in text
    assert inspect.getdoc(annealed).startswith("Share each target")
    assert "diversity : Tensor\n" in inspect.getdoc(Decomposition)


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_no_comment_of_a_public_function_is_lost(part):
    package, found = importlib.import_module(f"amcl_suite.{part}"), 0
    for module in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"amcl_suite.{part}.{module.name}")
        for name in module.__all__:
            function = inspect.unwrap(vars(module)[name]) if callable(vars(module)[name]) else None
            if not inspect.isfunction(function) or function.__module__ != module.__name__: continue
            for parameter, comment in docments(function).items():
                if not comment: continue
                found += 1
                assert comment.strip().splitlines()[0] in inspect.getdoc(vars(module)[name]), (
                    f"{module.__name__}.{name}: {parameter}")
    assert found > 100


def test_help_of_the_package_says_what_it_is():
    text = pydoc.render_doc(amcl_suite, renderer=pydoc.plaintext)
    assert "Several hypotheses compete for data" in text
    assert all(f"amcl_suite.{part}" in amcl_suite.__doc__ for part in PARTS)


def test_parts_and_modules_are_loaded_on_first_use():
    code = ("import sys, amcl_suite; assert 'torch' not in sys.modules\n"
            "print(amcl_suite.core.settings.setting.__name__, hasattr(amcl_suite.mcl, 'no_such'))\n"
            "assert 'torch' not in sys.modules\nprint(amcl_suite.mcl.assignment.annealed.__name__)")
    assert python(code).split() == ["setting", "False", "annealed"]


def test_what_a_module_lacks_is_named_and_not_hidden(tmp_path):
    package = tmp_path / "toy_help"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from amcl_suite.core.help import install\ninstall(__name__)\n")
    (package / "broken.py").write_text("import no_such_library\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import toy_help\n"
    lacks = code + "try: toy_help.broken\nexcept ModuleNotFoundError as e: print(e.name)"
    assert python(lacks).strip() == "no_such_library"
    nothing = code + "try: toy_help.nothing\nexcept AttributeError as e: print(e)"
    assert "no attribute 'nothing'" in python(nothing)


def test_docstrings_can_be_left_out():
    code = ("import amcl_suite\n"
            "print(amcl_suite.core.settings.setting.__doc__)")
    assert python(code, "-OO").strip() == "None"


def test_code_and_lines_stay_as_they_are():
    from amcl_suite.core.scaling import mean_and_spread
    first = inspect.getsource(mean_and_spread).splitlines()[0]
    assert first == "def mean_and_spread(" and "# `(n_rows" in inspect.getsource(mean_and_spread)
