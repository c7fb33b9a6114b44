"""A small project in a temporary folder, for tests of the engine and of the command line."""
import json
import os
import subprocess
import sys
import time
from pathlib import Path

RESULT = """
from amcl_suite.core.records import open_run
run = open_run(out_dir, experiment="toy", seeds=[n])
run.row(table="Table 1", dataset="toy", method="square", metric="square", value=n * n, paper=4.0)
_ = run.finish()
"""

# a random walk that keeps its state every step, and says in `starts.txt` from where it started
WALK = """
import json, pathlib, time
import numpy as np
from amcl_suite.core.files import write_json_atomic
from amcl_suite.core.records import open_run
run = open_run(out_dir, experiment="walk", seeds=[0])
path = run.checkpoint_dir / "state.json"
rng, step, place = np.random.default_rng(0), 0, 0.0
if path.exists():
    state = json.loads(path.read_text())
    rng.bit_generator.state, step, place = state["rng"], state["step"], state["place"]
with open(run.folder / "starts.txt", "a") as file: file.write(f"{step}\\n")
while step < n:
    step, place = step + 1, place + rng.normal()
    write_json_atomic(path, {"rng": rng.bit_generator.state, "step": step, "place": place})
    run.progress(step, n, unit="step")
    time.sleep(0.03)
run.row(method="walk", metric="place", value=place)
_ = run.finish()
"""


def walk_end(n):
    """Return where the walk ends without any interruption."""
    import numpy as np
    rng, place = np.random.default_rng(0), 0.0
    for _ in range(n): place += rng.normal()
    return place


class Project:
    """A project with notebooks, job files and its own folder of runs."""

    def __init__(self, root, runs="runs"):
        self.root, self.runs = Path(root).resolve(), Path(root).resolve() / runs
        (self.root / "settings.ini").write_text("[DEFAULT]\nlib_name = amcl_suite\n")
        self.env = {"AMCL_ROOT": str(self.root), "AMCL_RUNS_PATH": str(self.runs), "OMP_NUM_THREADS": "1"}

    def notebook(self, code, name="10_toy", parameters='n: int = 2  # a number\nout_dir: str = ""'):
        def cell(source, *tags):
            return {"cell_type": "code", "source": source, "metadata": {"tags": list(tags)},
                    "outputs": [], "execution_count": None}
        notebook = {"cells": [cell(parameters, "parameters"), cell(code)], "metadata": {},
                    "nbformat": 4, "nbformat_minor": 4}
        path = self.root / "nbs" / f"{name}.ipynb"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(notebook))

    def job(self, entries, name="toy"):
        path = self.root / "scripts" / "jobs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"title: A toy\nruns:\n{entries}\n")

    def start(self, *arguments):
        """Start `amcl` as a process."""
        return subprocess.Popen([sys.executable, "-c", "from amcl_suite.reproduce.cli import main; main()",
                                 *arguments], env=os.environ | self.env, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def amcl(self, *arguments):
        """Run `amcl`; return exit status and everything it printed."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=120)
        return process.returncode, out + err

    def records(self):
        """Return the records of all runs by name."""
        found = [json.loads(p.read_text()) for p in sorted(self.runs.glob("*/*/record.json"))]
        return {r["name"]: r for r in found}

    def folder(self, name):
        """Return the folder of the run with this name."""
        found, = self.runs.glob(f"*/{name}-????????")
        return found


def wait_until(condition, seconds=60):
    """Wait until `condition()` is true; fail otherwise."""
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "waited in vain"
        time.sleep(0.05)


def no_traceback(status, out, err):
    """Tell whether a command ended with one line about what was wrong."""
    return status == 2 and err.startswith("amcl: ") and "Traceback" not in err + out and err.count("\n") <= 2
