"The rules for notebooks hold, and each check can fail on a copy of the real project."
import json, shutil
from pathlib import Path

import pytest
from amcl_suite.reproduce.checks import main, run_checks
from amcl_suite.reproduce.code import notebooks
from amcl_suite.reproduce.rules import CHECKS
from amcl_suite.reproduce.parameters import notebook_parameters
from amcl_suite.reproduce.testing import is_experiment

ROOT = Path(__file__).resolve().parents[1]
WATCHES = ("nbs", "amcl_suite", "scripts", "README.md", "README_files", "_quarto.yml")


@pytest.mark.parametrize("name", list(CHECKS))
def test_check_is_green(name):
    findings = CHECKS[name](ROOT)
    assert not findings, "\n".join(map(str, findings))


def test_parameters_are_read_as_papermill_reads_them():
    import papermill
    for path in filter(is_experiment, notebooks(ROOT)):
        ours, theirs = notebook_parameters(path), papermill.inspect_notebook(path)
        assert list(ours) == list(theirs), path
        for name, parameter in ours.items():
            assert parameter.type == theirs[name]["inferred_type_name"], (path, name)
            assert repr(parameter.default) == repr(eval(theirs[name]["default"])), (path, name)


@pytest.fixture()
def copy(tmp_path):
    "A copy of the project that a test may spoil."
    for name in ("settings.ini", "pyproject.toml", "_quarto.yml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("nbs", "amcl_suite", "scripts", "README_files"):
        if (ROOT / name).is_dir(): shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    return tmp_path


CHAPTER = "nbs/10_mcl/110_assignment.ipynb"


def spoil(root: Path, change, name: str = CHAPTER):
    "Apply `change` to the cells of a notebook."
    path = root / name
    book = json.loads(path.read_text(encoding="utf-8"))
    change(book["cells"])
    path.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def add(kind: str, source: str, **more):
    "Return a change that appends a cell."
    cell = dict(cell_type=kind, id="ffffffff", metadata={}, source=source)
    if kind == "code": cell |= dict(execution_count=None, outputs=[])
    return lambda cells: cells.append(cell | more)


def printed(text: str): return [dict(output_type="stream", name="stdout", text=[text])]


SPOILS = {
    "titles": (lambda cells: cells[0].update(source="# Assignment\n> Who learns\n\nlost text"),
               "lost on the site"),
    "references": (add("markdown", "see @eq-mcl-nowhere"), "@eq-mcl-nowhere"),
    "links": (add("markdown", "[gone](../gone.ipynb)"), "dead link"),
    "imports": (add("code", "import os\nx = os.sep"), "imports share"),
    "modules": (lambda cells: [c.update(source="#| default_exp mcl.renamed")
                               for c in cells if "default_exp" in "".join(c["source"])],
                "mcl/renamed.py is missing"),
    "readers": (add("code", "#| export\nweights = torch.load('a.pt')"), "torch.load opens a file"),
    "documentation": (add("code", "#| export\ndef bare(x): return x"), "bare: no comment on x"),
    "experiments": (add("code", "n: int = 1  # one", metadata={"tags": ["parameters"]}),
                    "parameters cell"),
    "outputs": (add("code", "f()", outputs=printed("/tmp/x: UserWarning")), "a warning"),
    "executed": (add("code", "print(1)"), "no stored output"),
    "size": (add("code", "f()", outputs=printed("much " * 50_000)), "budget"),
    "export": (add("code", "#| export\n_new = 1"), "run nbdev_export"),
    "clean": (add("code", "f()", execution_count=3), "run nbdev_clean"),
}


@pytest.mark.parametrize("name", list(SPOILS))
def test_check_sees_a_spoilt_notebook(copy, name):
    change, message = SPOILS[name]
    before = {str(f) for f in CHECKS[name](copy)}
    spoil(copy, change)
    new = [str(f) for f in CHECKS[name](copy) if str(f) not in before]
    assert any(message in finding for finding in new), new


def test_check_sees_a_notebook_that_is_not_listed(copy):
    shutil.copy(copy / CHAPTER, copy / "nbs/10_mcl/112_other.ipynb")
    assert any("112_other.ipynb is not in the sidebar" in f.message
               for f in CHECKS["sidebar"](copy))


def test_check_sees_a_readme_that_lags_behind(copy):
    spoil(copy, add("markdown", "news"), "nbs/index.ipynb")
    assert [f.file for f in CHECKS["readme"](copy)] == ["README.md"]


def test_check_sees_versions_that_differ(copy):
    text = (copy / "pyproject.toml").read_text()
    (copy / "pyproject.toml").write_text(text.replace('requires-python = ">=3.11"',
                                                      'requires-python = ">=3.10"'))
    assert len(CHECKS["versions"](copy)) == 1


def test_check_sees_a_job_with_an_unknown_parameter(copy):
    experiment = next((p for p in notebooks(copy)
                       if any("parameters" in c["metadata"].get("tags", ())
                       for c in json.loads(p.read_text())["cells"])), None)
    assert experiment is not None, "the project has no experiment"
    job = (f"title: Wrong\nruns:\n  - notebook: {experiment.relative_to(copy).as_posix()}\n"
           "    parameters: {no_such_parameter: 1}\n")
    (copy / "scripts" / "jobs").mkdir(exist_ok=True)
    (copy / "scripts" / "jobs" / "wrong.yaml").write_text(job)
    assert any("no_such_parameter" in f.message for f in CHECKS["jobs"](copy))


@pytest.mark.slow
def test_checks_leave_the_project_as_it_is(copy):
    read = lambda: {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()
                    and "__pycache__" not in p.parts}
    before = read()
    run_checks(root=copy)
    assert read() == before


def test_command_line(capsys):
    assert main(["versions"]) == 0 and "ok" in capsys.readouterr().out
    assert main(["no-such-check"]) == 2 and "Known:" in capsys.readouterr().err
