"""Workers and kernels that are copies of a process which has loaded everything: as good as ones from nothing."""
import contextlib
import io
import json
import logging
import sys

import psutil
import pytest
from amcl_suite.reproduce import forks
from amcl_suite.reproduce.engine import Engine
from amcl_suite.reproduce.jobs import load_job
from amcl_suite.reproduce.spare_kernel import reseed
from toys import RESULT, Project, wait_until

TOY = "- {notebook: nbs/10_toy.ipynb, grid: {n: [%s]}}"
LOG = """
import json, os, psutil
worker = psutil.Process(os.getppid())
server = worker.parent()
def log(**what):
    with open(out_dir + '/../log.txt', 'a') as file: file.write(json.dumps({"n": n, **what}) + '\\n')
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    made = Project(tmp_path)
    for name, value in made.env.items(): monkeypatch.setenv(name, value)
    made.log = lambda: [json.loads(line) for line in (made.runs / "toy" / "log.txt").read_text().splitlines()]
    return made


def run_here(project, workers=1):
    """Run the job in this process; return the states by name."""
    return {o.run.name: o.state for o in Engine(load_job("toy").runs, workers).run()}


CHANCE = """
import random
import numpy as np
log(server=server.pid, draws=[random.random(), np.random.rand()])
if n == 1: worker.kill()
if n == 2: server.kill()
"""


@pytest.mark.slow
def test_neither_a_worker_nor_a_server_that_dies_disturbs_the_others(project):
    before = set(psutil.Process().children(recursive=True))             # of other tests in this process
    project.notebook(LOG + CHANCE + "import time; time.sleep(0.5)\n" + RESULT)
    project.job(TOY % "0, 1, 2, 3")
    assert run_here(project) == {"toy-0": "finished", "toy-1": "failed", "toy-2": "finished", "toy-3": "finished"}
    servers = {line["n"]: line["server"] for line in project.log()}
    assert servers[0] == servers[1] == servers[2] != servers[3]         # killed during the third run
    assert "the worker was killed" in project.records()["toy-1"]["error"]["line"]
    draws = [draw for line in project.log() for draw in line["draws"]]
    assert len(set(draws)) == len(draws) == 8, [line["n"] for line in project.log()]            # no two runs are twins
    assert not (project.runs / ".submitit").exists()
    assert not set(psutil.Process().children(recursive=True)) - before


@pytest.mark.slow
@pytest.mark.parametrize("death", ["killed", "unfit"])
def test_without_a_server_runs_start_from_nothing(project, monkeypatch, death):
    project.notebook("import os, psutil\nline = psutil.Process(os.getppid()).parent().cmdline()\n"
                     + RESULT.replace("n * n", "int('submitit.local._local' in line)"))
    project.job(TOY % "1, 2")
    start, servers = forks._start_server, []
    def dying(*arguments):
        servers.append(start(*arguments))
        if death == "killed": servers[-1].kill()
        return servers[-1]
    monkeypatch.setattr(forks, "_start_server", dying)
    if death == "unfit": (project.root / "entrypoints.py").write_text("")   # papermill has loaded another
    assert run_here(project) == {"toy-1": "finished", "toy-2": "finished"}
    assert [r["rows"][0]["value"] for r in project.records().values()] == [1, 1]
    assert len(servers) == 1                                            # it is not tried again


# all that a notebook can see of its process
LOOK = """
import os, signal, sys, threading
import matplotlib, matplotlib.pyplot as plt, numpy as np
from tqdm.auto import tqdm
from amcl_suite.core import tables
hidden = ("JPY_", "SUBMITIT", "JUPYTER", "PWD", "OLDPWD", "SHLVL", "_", "AMCL_FORK")
seen = {
    "environment": {k: v for k, v in os.environ.items() if not k.startswith(hidden)},
    "parent": bool(os.environ["JPY_PARENT_PID"] == str(os.getppid())),
    "folder": os.getcwd(), "path": sys.path, "argv": [sys.argv[0], len(sys.argv)], "main": __name__,
    "hash": hash("a text"), "backend": matplotlib.get_backend(), "bar": tqdm.__module__,
    "ps1": sys.ps1, "shell": type(get_ipython()).__name__, "session": os.getsid(0) == os.getpid(),
    "signals": [str(signal.getsignal(s)) for s in (signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE)],
    "threads": sorted(type(t).__name__ for t in threading.enumerate()),
}
import json
with open(out_dir + "/seen.json", "w") as file: json.dump(seen, file)
"""


@pytest.mark.slow
def test_a_copied_kernel_is_like_one_from_nothing(project):
    project.notebook(LOOK + "print('a line')\nplt.plot([1, 2])\nplt.show()\nprint('é', file=sys.stderr)\nnp.float64(2)\n"
                     "class Mine: pass\nimport pickle\nassert type(pickle.loads(pickle.dumps(Mine()))) is Mine\n" + RESULT
                     + "\nseen and 'the end'")
    project.job(TOY % "3")
    project.env |= {"AMCL_MARK": "a mark", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "MPLBACKEND": ""}
    seen, outputs = [], []
    for fork in ("1", "0"):
        project.env["AMCL_FORK"] = fork
        status, text = project.amcl("run", "toy", "--force")
        assert status == 0, text
        seen.append(json.loads((project.folder("toy-3") / "seen.json").read_text()))
        notebook = json.loads((project.folder("toy-3") / "executed.ipynb").read_text())
        outputs.append([cell.get("outputs") for cell in notebook["cells"]])
        warning = lambda o: o.get("name") == "stderr" and "IProgress" in "".join(o["text"])   # of an import
        outputs[-1] = [[o for o in of or [] if not warning(o)] for of in outputs[-1]]
    for key in seen[1]: assert seen[0][key] == seen[1][key], key
    assert outputs[0] == outputs[1]
    assert any("image/png" in o.get("data", {}) for of in outputs[0] for o in of)
    assert seen[0]["environment"]["AMCL_MARK"] == "a mark" and seen[0]["environment"]["OMP_NUM_THREADS"] == "1"


def test_what_a_user_changes_between_runs_is_seen(project):
    (project.root / "mine.py").write_text("value = 1\n")
    project.notebook("import mine, pathlib, sys\nvalue = mine.value\n"
                     "pathlib.Path('mine.py').write_text('value = 20\\n')\n" + RESULT.replace("n * n", "value"))
    project.job(TOY % "1, 2")
    assert run_here(project) == {"toy-1": "finished", "toy-2": "finished"}
    assert sorted(r["rows"][0]["value"] for r in project.records().values()) == [1, 20]


def test_a_notebook_that_speaks_before_it_imports_gets_a_kernel_from_nothing(project):
    project.notebook("import os, sys\nloaded = 'papermill' in sys.modules\nos.environ['MKL_X'] = '1'\n"
                     + RESULT.replace("n * n", "int(loaded)"))
    project.job(TOY % "1")
    assert run_here(project) == {"toy-1": "finished"}
    assert project.records()["toy-1"]["rows"][0]["value"] == 0


@pytest.mark.slow
def test_nothing_outlives_a_killed_engine_but_runs_that_have_begun(project):
    project.notebook(LOG + "log(server=server.pid)\nimport time\ntime.sleep(4)\n" + RESULT)
    project.job(TOY % "1, 2")
    engine = project.start("run", "toy", "--workers", "1")              # killed while its server loads
    wait_until(lambda: psutil.Process(engine.pid).children())
    members = psutil.Process(engine.pid).children(recursive=True)
    engine.kill()
    engine.wait()
    assert not psutil.wait_procs(members, timeout=10)[1]
    engine = project.start("run", "toy", "--workers", "1")              # killed while a run is at work
    wait_until(lambda: (project.runs / "toy" / "log.txt").exists())
    members = psutil.Process(engine.pid).children(recursive=True)
    engine.kill()
    engine.wait()
    wait_until(lambda: not psutil.pid_exists(project.log()[0]["server"]), 10)
    assert not psutil.wait_procs(members, timeout=30)[1]
    assert {r["state"] for r in project.records().values()} == {"finished"} and len(project.records()) == 1


def test_libraries_that_are_loaded_have_the_threads_of_the_run(project):
    project.notebook("import os, torch\nassert os.environ['MKL_NUM_THREADS'] == '1'\n"
                     + RESULT.replace("n * n", "torch.get_num_threads()"))
    project.job(TOY % "1")
    assert run_here(project) == {"toy-1": "finished"}
    assert project.records()["toy-1"]["rows"][0]["value"] == 1         # of OMP_NUM_THREADS, not of the machine


def test_unseeded_numbers_of_copies_differ():
    import numpy
    import torch
    draws = set()
    for _ in range(2):
        numpy.random.seed(0)
        torch.manual_seed(0)
        reseed()
        draws |= {float(numpy.random.rand()), float(torch.rand(1))}
    assert len(draws) == 4


def test_a_stream_that_a_library_keeps_leads_to_the_notebook(monkeypatch, capsys):
    """A logger's handler takes sys.stderr when it is made: what it writes later belongs to the cell."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr(sys, "ps1", "", raising=False)
    with forks._as_in_a_kernel(): handler = logging.StreamHandler()
    handler.emit(logging.makeLogRecord({"msg": "before"}))
    with contextlib.redirect_stderr(io.StringIO()) as cell: handler.emit(logging.makeLogRecord({"msg": "in a cell"}))
    assert cell.getvalue() == "in a cell\n" and capsys.readouterr().err == "before\n"


@pytest.mark.parametrize("value, wanted", [("0", False), ("1", True), ("", True)])
def test_forks_can_be_switched_off(monkeypatch, value, wanted):
    monkeypatch.setenv("AMCL_FORK", value)
    assert forks.forks_wanted() == (wanted and sys.platform == "linux")
