"What a start loads: not what nobody may need, and nothing twice."
import json, subprocess, sys
from importlib.metadata import version
from pathlib import Path

import pytest

from amcl_suite.core.late import COMPILERS
from amcl_suite.reproduce.jobs import load_job

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "nbs" / "20_separation" / "checkpoints" / "amcl.pt"
COMPILER = "sympy"          # PyTorch's compiler can't be imported without it
COMMAND = "from amcl_suite.reproduce.cli import main\ntry: main()\nexcept SystemExit: pass\n"


def run(code: str, *arguments: str, **environment: str) -> str:
    "Run code in a fresh process; return what it printed last."
    import os
    done = subprocess.run([sys.executable, "-W", "error::SyntaxWarning", "-c", code, *arguments],
                          capture_output=True, text=True, cwd=ROOT, env=os.environ | environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


def loaded(code: str, names: set[str], *arguments: str) -> set[str]:
    "Return which of these modules a process has loaded after running code."
    code = f"import json, sys\nsys.argv[0] = 'amcl'\n{code}\nprint(json.dumps([n for n in {names!r} if sys.modules.get(n)]))"
    return set(json.loads(run(code, *arguments)))


def test_the_lock_brings_a_compiler_that_can_sleep():
    """When this fails: run the tests below with the new version, then name it in `COMPILERS`."""
    assert version("torch").startswith(COMPILERS)


UNWANTED = {"torchvision", "pystoi", "transformers", "pesq", "fast_bss_eval", "scipy.signal", "scipy.stats",
            "sklearn", "pandas", "matplotlib", COMPILER}

ONE_STEP = """
import torch
from amcl_suite.core.trainer import Fabric
network = torch.nn.Linear(2, 2)
optimiser = torch.optim.Adam(network.parameters())
network, optimiser = Fabric(accelerator="cpu").setup(network, optimiser)
optimiser.zero_grad()
network(torch.ones(1, 2)).sum().backward()
optimiser.step()
"""


@pytest.mark.parametrize("module", ["core.trainer", "separation.system", "objects.system"])
def test_a_training_loads_nothing_that_it_may_not_need(module):
    assert loaded(f"import amcl_suite.{module}\n{ONE_STEP}", UNWANTED) == set()


def test_what_was_kept_away_is_there_afterwards():
    names = "('torchvision', 'pystoi', 'pandas')"
    found = run("import importlib.util as util\n"
                f"before = [bool(util.find_spec(name)) for name in {names}]\n"
                "import amcl_suite.core.trainer\n"
                f"print(before == [bool(util.find_spec(name)) for name in {names}])")
    assert found == "True"


COMPILED = """
import copy
from lightning.fabric.wrappers import OptimizedModule
module = network.module
plain = copy.deepcopy(module)
add = torch.optim.Optimizer.add_param_group.__wrapped__        # without what keeps the compiler out
assert vars(add)["__dynamo_disable"] is add
assert not isinstance(module, OptimizedModule)
compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
assert isinstance(compiled, OptimizedModule) and isinstance(compiled, torch._dynamo.OptimizedModule)
assert "__dynamo_disable" not in vars(add)
x = torch.arange(6.).view(3, 2)
for one in (compiled, plain):
    one.zero_grad()
    one(x).square().sum().backward()
for one, other in zip(module.parameters(), plain.parameters()): assert torch.equal(one.grad, other.grad)
before = [p.clone() for p in module.parameters()]
torch.compile(optimiser.step, backend="eager")()
assert all(not torch.equal(p, q) for p, q in zip(module.parameters(), before))
torch.optim.SGD(module.parameters())
assert vars(add)["__dynamo_disable"] is not add
print("fine")
"""


def test_the_compiler_works_after_a_training_without_it():
    assert run(f"import amcl_suite.core.trainer\n{ONE_STEP}{COMPILED}") == "fine"


def test_the_command_that_separates_loads_no_training_and_no_solver(tmp_path):
    import torch
    from amcl_suite.core.audio import write_audio
    noise = 0.1 * torch.randn(20 * 8000, generator=torch.Generator().manual_seed(0))
    sound = write_audio(tmp_path / "noise.wav", noise, 8000)
    found = loaded(COMMAND, UNWANTED | {"lightning", "scipy.optimize"}, "separation", "separate", str(sound),
                   "--checkpoint", str(CHECKPOINT), "--out", str(tmp_path / "out"))
    assert found == set() and (tmp_path / "out" / "noise" / "result.json").exists()


def test_a_second_look_at_the_jobs_parses_no_module(tmp_path):
    forbidden = ("from amcl_suite.reproduce import code\n"
                 "def parse(source): raise AssertionError('parsed again: ' + source[:60])\n"
                 "code._without_docstrings = code.syntax_tree = parse\n")
    show = [COMMAND, "show", "quick_start"]
    places = dict(AMCL_CACHE=str(tmp_path), AMCL_RUNS_PATH=str(tmp_path / "runs"))
    first = run(forbidden + show[0], *show[1:], **places)           # nothing has begun: no hash is asked for
    name = load_job("quick_start").runs[0].name
    (tmp_path / "runs" / "quick_start" / f"{name}-00000000").mkdir(parents=True)      # of other code, say
    assert run(*show, **places) == first
    kept = json.loads((tmp_path / "code.json").read_text())
    assert len(kept) > 50
    assert run(forbidden + show[0], *show[1:], **places) == first
    (tmp_path / "code.json").write_text("{")                       # half a file is as good as none
    assert run(*show, **places) == first


def test_rows_are_read_by_who_asks_for_them(tmp_path):
    from amcl_suite.core.records import SCHEMA_VERSION
    from amcl_suite.reproduce.report import StoredRows, collect, tidy_rows
    row = dict(method="m", metric="x", value=1.0, better="", scale="small", per_seed=[1.0, 2.0])
    for i in range(3):
        folder = tmp_path / "toy" / f"run-{i}"
        folder.mkdir(parents=True)
        record = dict(schema=SCHEMA_VERSION, state="finished", job="toy", name=f"run-{i}", notebook="n.ipynb",
                      parameters={"n": i}, hash=f"{i}" * 64, rows=[row] * i)
        (folder / "record.json").write_text(json.dumps(record))
    lean, whole = collect(folder=tmp_path), collect(folder=tmp_path, keep_rows=True)
    assert [type(r["rows"]) for r in lean.records] == [list, StoredRows, StoredRows]      # none, one, two
    assert [len(r["rows"]) for r in lean.records] == [0, 1, 2]
    assert tidy_rows(lean.records) == tidy_rows(whole.records) and len(tidy_rows(lean.records)) == 3
    only = collect(folder=tmp_path, only=("n=2",))
    assert only.records[0]["rows"] == [row] * 2 == list(lean.records[2]["rows"])
