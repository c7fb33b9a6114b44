"The page \"How to add a part\", followed to the letter in an empty folder: no line of core or reproduce knows the toy."
import os, re, shutil, subprocess, sys
from pathlib import Path

import pytest

from amcl_suite.core.claims import read_ledger
from amcl_suite.reproduce.code import read_cells

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "nbs/00_start/049_add_a_part.ipynb"
WATCHES = ("nbs/00_start", "amcl_suite", "nbs/80_reproduce/_template")
STEP = re.compile(r"(?:`([\w/.]+)`:\n\n)?```(\w+)\n(.*?)\n```", re.S)   # a file with its name, or commands


def steps() -> list[tuple[str, str]]:
    "Return the steps of the section on a package of its own: (name of a file, text) or (\"\", commands)."
    text = "\n\n".join(cell.source for cell in read_cells(PAGE) if cell.kind == "markdown")
    section = text.partition("## In a package of its own")[2].partition("\n## ")[0]
    found = [(name, body) for name, language, body in STEP.findall(section)]
    assert [name for name, _ in found].count("") == 3 and len(found) == 10
    return found


class Toy:
    "A folder where the page is followed, and what it needs to be followed in."

    def __init__(self, place: Path):
        self.folder, tools = place / "project", place / "bin"
        for folder in (self.folder, tools, place / "data"): folder.mkdir()
        installed = place / "installed"
        uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        scripts = {
            "amcl": f'exec {sys.executable} -c "from amcl_suite.reproduce.cli import main; main()" "$@"',
            "pytest": f'exec {sys.executable} -m pytest -p no:cacheprovider "$@"',
            # into a folder on the path, instead of the environment that all tests share
            "pip": f'[[ "$*" == "install -e ." ]] && exec {uv} pip install -q --offline --no-deps '
                   f'--no-build-isolation --python {sys.executable} --target {installed} .'}
        for name, text in scripts.items():
            (tools / name).write_text(f"#!/bin/bash\n{text}\n")
            (tools / name).chmod(0o755)
        path = [str(installed), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.env = {k: v for k, v in os.environ.items() if k not in ("AMCL_ROOT", "PYTHONDONTWRITEBYTECODE")} | {
            "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": ":".join(path), "COLUMNS": "250",
            "AMCL_RUNS_PATH": str(place / "runs"), "AMCL_DATA": str(place / "data"), "OMP_NUM_THREADS": "1"}

    def bash(self, commands: str) -> str:
        "Run commands; return what they print."
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", commands], cwd=self.folder, env=self.env,
                              capture_output=True, text=True)
        assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def python(self, code: str) -> str: return self.bash(f"{sys.executable} - <<'PY'\n{code}\nPY")


@pytest.mark.slow
def test_the_page_followed_to_the_letter(tmp_path):
    toy, (*before, (_, last)) = Toy(tmp_path), steps()
    for name, text in before:
        if name:
            (toy.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (toy.folder / name).write_text(text + "\n")
        else: toy.bash(text)
    install, test, *look = last.splitlines()
    toy.bash(install)
    toy.bash(test)
    styles_data_and_help(toy)
    claims_are_read(toy)
    said = {command.partition("#")[0].strip(): toy.bash(command) for command in look}
    assert re.search(r"\btoy\b", said["amcl list"]) and "toy-throws" in said["amcl data list"]
    assert said["amcl toy throw"].split() and set(said["amcl toy throw"].split()) <= {"heads", "tails"}
    assert "2 finished, 0 failed" in said["amcl run toy"]
    assert len(list(Path(toy.env["AMCL_RUNS_PATH"]).glob("toy/*/record.json"))) == 2
    assert "toy" in toy.bash("amcl --help") and "throw" in toy.bash("amcl toy --help")


def styles_data_and_help(toy):
    "Check that the part's look, its data set and the comments of its signatures are there."
    code = ("from amcl_suite.core.data import catalogue\nfrom amcl_suite.core.parts import method_style, parts\n"
            "import amcl_toy, sys\nassert 'torch' not in sys.modules\n"
            "print(catalogue()['toy-throws'].title, method_style('coin').colour, parts()['toy'].title)\n"
            "print(amcl_toy.coins.coin.__doc__)")
    text = toy.python(code)
    assert text.startswith("A hundred throws of a coin #117733 Toys\n")
    assert "generator : torch.Generator\n    of the draws" in text
    line = next(line for line in toy.bash("amcl data list").splitlines() if "toy-throws" in line)
    assert "not here" in line
    throws = Path(toy.env["AMCL_DATA"]) / "toy/throws.txt"
    throws.parent.mkdir(parents=True)
    throws.write_text(50 * "01")
    toy.bash("amcl data check toy-throws")


def claims_are_read(toy):
    "Check that the ledger is one, empty so far."
    assert not read_ledger(toy.folder / "amcl_toy/claims.yaml")


def test_core_and_reproduce_know_nothing_of_it():
    sources = [*(ROOT / "amcl_suite/core").glob("*.py"), *(ROOT / "amcl_suite/reproduce").glob("*.py")]
    assert not [path.name for path in sources if "amcl_toy" in path.read_text(encoding="utf-8")]
