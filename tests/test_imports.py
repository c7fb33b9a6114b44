"What may import what, and what an import may cost."
import ast, importlib.util, json, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "amcl_suite"
WATCHES = ("amcl_suite",)

# part -> parts it may import from, besides itself (DESIGN, section 2)
ALLOWED = {
    "core": set(), "mcl": {"core"}, "separation": {"core", "mcl"}, "ensembles": {"core", "mcl"},
    "objects": {"core", "mcl"}, "interactive": {"core", "mcl"}, "audition": {"core", "mcl", "separation"},
    "reproduce": {"core"},
}
AUDIO = {"torchaudio", "librosa", "soundfile", "asteroid", "speechbrain", "pyroomacoustics"}
HEAVY = {"torch", "numpy", "pandas", "matplotlib", "lightning", "sklearn", "scipy"} | AUDIO


def modules():
    unlike = ("__init__.py", "__main__.py", "_modidx.py")
    return sorted(p for p in PACKAGE.rglob("*.py") if p.name not in unlike)


def imported_parts(source: str, package: str) -> set[str]:
    "Return the parts of the suite that code inside `package` imports, wherever in the code."
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import): names = [a.name for a in node.names]
        if isinstance(node, ast.ImportFrom):
            base = (importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                    if node.level else node.module)
            names = [base] if base != "amcl_suite" else [f"amcl_suite.{a.name}" for a in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith("amcl_suite.")}
    known = lambda name: name in ALLOWED or (PACKAGE / name).is_dir()      # not `__version__`
    return set(filter(known, found))


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_parts_import_only_what_they_may(path):
    part = path.relative_to(PACKAGE).parts[0]
    found = imported_parts(path.read_text(encoding="utf-8"), f"amcl_suite.{part}")
    assert found <= ALLOWED[part] | {part}


def test_the_package_as_a_command_imports_only_the_command_line():
    source = (PACKAGE / "__main__.py").read_text(encoding="utf-8")
    assert imported_parts(source, "amcl_suite") == {"reproduce"}


def test_a_forbidden_import_would_be_seen():
    for source in ("from amcl_suite.mcl import losses", "from ..mcl.losses import f",
                   "def f():\n    import amcl_suite.mcl",
                   "from amcl_suite import mcl"):
        assert imported_parts(source, "amcl_suite.core") == {"mcl"}
    assert imported_parts("from .settings import setting\nimport amcl_suites.mcl",
                          "amcl_suite.core") == {"core"}


def after_import(statement: str) -> dict:
    "Run an import in a fresh process; return its seconds and the top-level modules that it loaded."
    code = ("import sys, time, json; before = set(sys.modules); start = time.perf_counter()\n"
            "cpu = time.process_time()\n"
            f"{statement}\n"
            "seconds, cpu = time.perf_counter() - start, time.process_time() - cpu\n"
            "new = sorted({m.split('.')[0] for m in set(sys.modules) - before})\n"
            "print(json.dumps({'seconds': seconds, 'cpu': cpu, 'modules': new}))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=ROOT)
    return json.loads(done.stdout)


def test_the_package_itself_loads_nothing_heavy():
    runs = [after_import("import amcl_suite") for _ in range(5)]
    assert not HEAVY & set(runs[0]["modules"])
    # the best of five: other processes may be at work
    assert min(run["seconds"] for run in runs) < 0.3


def test_settings_and_data_need_no_numerical_library():
    light = after_import("import amcl_suite.core.settings, amcl_suite.core.data")
    assert not HEAVY & set(light["modules"])


def test_mcl_modules_load_no_audio_and_no_plotting():
    names = [f"amcl_suite.mcl.{p.stem}" for p in modules()
             if p.parent.name == "mcl" and p.stem != "estimators"]       # which is for scikit-learn
    unwanted = AUDIO | {"matplotlib", "pandas", "sklearn", "papermill", "imageio", "lightning"}
    lines = [f"import {name}; loaded[{name!r}] = sorted({unwanted!r} & set(sys.modules))"
             for name in names]
    done = subprocess.run([sys.executable, "-c", "\n".join(["import json, sys", "loaded = {}",
                                                            *lines, "print(json.dumps(loaded))"])],
                          capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout) == {name: [] for name in names}


@pytest.mark.slow
def test_the_whole_of_mcl_loads_in_time():
    names = ", ".join(f"amcl_suite.mcl.{p.stem}" for p in modules()
                      if p.parent.name == "mcl" and p.stem != "estimators")
    best = min(after_import(f"import {names}")["seconds"] for _ in range(3))
    torch = min(after_import("import torch")["seconds"] for _ in range(2))
    assert best < max(2.5, 2 * torch), f"{best:.2f} s, of which torch {torch:.2f} s"


def test_losses_cost_little_more_than_torch():
    def least(statement):                   # processor seconds: other processes may be at work
        return min(after_import(statement)["cpu"] for _ in range(3))
    torch, losses = least("import torch"), least("import amcl_suite.mcl.losses")
    assert losses - torch < 0.5, (losses, torch)
