"Scripts, lock file and packaging: what a newcomer's first command depends on."
import re, shutil, subprocess, sys, time, tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WATCHES = ("scripts", ".ci", "README.md", "LICENSE")
SCRIPTS = sorted([*(ROOT / "scripts").glob("*.sh"), ROOT / ".ci" / "run"])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_script_parses_and_says_what_it_does(path):
    subprocess.run(["bash", "-n", path], check=True)
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash" and lines[1].startswith("# ")
    assert re.search(r"^set -[eu]*uo? pipefail|^set -euo pipefail", path.read_text(), re.M)


def environment_is_ours():
    return Path(sys.prefix).resolve() == (ROOT / ".venv").resolve()


@pytest.mark.skipif(not environment_is_ours(),
                    reason="these tests don't run in the .venv of this checkout")
def test_second_set_up_takes_seconds():
    subprocess.run(["bash", ROOT / "scripts/setup.sh"], check=True, capture_output=True)
    start = time.perf_counter()
    done = subprocess.run(["bash", ROOT / "scripts/setup.sh"], check=True, capture_output=True,
                          text=True)
    assert "up to date" in done.stdout and time.perf_counter() - start < 5


def small_checkout(folder: Path) -> Path:
    "A folder with what setup.sh reads, and no environment."
    (folder / "scripts").mkdir()
    for name in ("scripts/setup.sh", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def tools(folder: Path, **commands: str) -> dict:
    "Return an environment whose PATH holds the usual tools, with the given commands as scripts."
    folder.mkdir()
    for name in ("bash", "env", "df", "awk", "cat", "rm", "mktemp", "dirname", "grep"):
        if found := shutil.which(name): (folder / name).symlink_to(found)
    for name, text in commands.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    return {"PATH": str(folder), "HOME": str(folder)}


def set_up(root: Path, env: dict):
    return subprocess.run([shutil.which("bash"), root / "scripts/setup.sh"], env=env,
                          capture_output=True, text=True)


def test_old_python_is_refused_with_a_remedy(tmp_path):
    root = small_checkout(tmp_path)
    env = tools(tmp_path / "bin",
                python3='[[ "$1" == --version ]] && echo "Python 3.9.1"; [[ "$1" != -c ]]')
    done = set_up(root, env)
    assert (done.returncode == 1 and "Python 3.9.1" in done.stderr
            and "remedy: install one" in done.stderr)
    assert not (root / ".venv").exists()


@pytest.mark.slow
def test_no_network_is_named_with_a_remedy(tmp_path):
    root = small_checkout(tmp_path)
    env = tools(tmp_path / "bin", python3=f'exec {Path(sys.base_prefix) / "bin" / "python3"} "$@"',
                uv="echo 'error: Failed to fetch' >&2; exit 2")
    done = set_up(root, env)
    assert done.returncode == 1 and "could not install the locked packages" in done.stderr
    assert "remedy: check the network" in done.stderr
    # a failed set-up is not taken for a finished one
    assert not (root / ".venv" / "amcl_suite.stamp").exists()


# --- the CPU build of PyTorch ---

FAKE_UV = """echo "UV_TORCH_BACKEND=${UV_TORCH_BACKEND:-} $*" >> "$HOME/uv.log"
for word in "$@"; do [[ -f "$word" && "$word" != -* ]] && cat "$word" > "$HOME/last.txt"; done
[[ -n "${FAILS:-}" && "$*" == *$FAILS* ]] && exit 1
exit 0"""


@pytest.fixture
def cpu(tmp_path):
    "A function that runs setup.sh with a uv that only notes what it is told; its root; the notes."
    root = small_checkout(tmp_path)
    env = tools(tmp_path / "bin", uv=FAKE_UV,
                python3=f'exec {Path(sys.base_prefix) / "bin" / "python3"} "$@"')
    for name in ("amcl_suite", "torch"): (tmp_path / "bin" / f"{name}.py").write_text("")
    env["PYTHONPATH"] = str(tmp_path / "bin")
    log = tmp_path / "bin" / "uv.log"
    def run(*options, **more):
        log.write_text("")
        done = subprocess.run([shutil.which("bash"), root / "scripts/setup.sh", *options],
                              env=env | more, capture_output=True, text=True)
        return done, log.read_text().splitlines()
    return run, root


PINNED = "torch==2.11.0 torchvision==0.26.0 torchaudio==2.11.0"


@pytest.mark.slow
def test_cpu_build_is_installed_and_kept(cpu, tmp_path):
    run, root = cpu
    done, told = run("--cpu")
    assert done.returncode == 0, done.stderr
    assert "3.3 GB less" in done.stdout
    torch, rest, removed, editable = told
    assert torch.startswith("UV_TORCH_BACKEND=cpu pip install --no-deps") and torch.endswith(PINNED)
    assert "--require-hashes" in rest and "--no-deps" in rest
    assert "uninstall" in removed and "nvidia-cublas" in removed and " triton" in removed
    assert editable.endswith("--no-build-isolation -e .")
    assert run()[1] == []                                   # up to date; and the kind is kept
    (root / "pyproject.toml").write_text((root / "pyproject.toml").read_text() + "# changed\n")
    assert run()[1][0].endswith(f"--no-deps {PINNED}")      # no reinstallation of what is there
    done, told = run("--force")                             # back to the locked build
    assert "--reinstall-package torch " in told[0] and told[0].endswith("-r requirements.lock")
    assert run("--force")[1][0].endswith("pip install --require-hashes -r requirements.lock")


@pytest.mark.slow
def test_what_is_left_of_the_lock_for_a_cpu(cpu, tmp_path):
    run, root = cpu
    run("--cpu", FAILS="--require-hashes")                  # stops there
    kept = set(re.findall(r"^([\w.-]+)==", (tmp_path / "bin" / "last.txt").read_text(), re.M))
    gone = set(re.findall(r"^([\w.-]+)==", (root / "requirements.lock").read_text(), re.M)) - kept
    assert {"torch", "torchvision", "torchaudio", "triton"} <= gone and "numpy" in kept
    assert all(name.startswith(("torch", "triton", "nvidia-", "cuda-")) for name in gone)
    assert {"torchmetrics", "torch-optimizer"} <= kept
    blocks = re.split(r"^(?=[\w.-]+==)", (tmp_path / "bin" / "last.txt").read_text(), flags=re.M)[1:]
    assert all("--hash=sha256:" in block for block in blocks)


@pytest.mark.slow
def test_an_index_without_cpu_builds_is_named(cpu, tmp_path):
    run, root = cpu
    done, told = run("--cpu", FAILS="torch==")
    assert done.returncode == 1 and "no CPU build of PyTorch" in done.stderr
    assert "UV_INDEX" in done.stderr and not (root / ".venv" / "amcl_suite.stamp").exists()
    assert len(told) == 2 and "torch==2.11.0+cpu" in told[1]    # then a package index is asked


def test_wrong_argument_is_refused():
    done = subprocess.run(["bash", ROOT / "scripts/setup.sh", "--nonsense"], capture_output=True,
                          text=True)
    assert done.returncode == 1 and "usage" in done.stderr
    assert subprocess.run(["bash", ROOT / "scripts/test.sh", "--nonsense"],
                          capture_output=True).returncode == 2


def locked() -> dict[str, set[str]]:
    "Return the versions of every locked package."
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)==(\S+)",
                                    (ROOT / "requirements.lock").read_text(), re.M):
        found.setdefault(name.lower().replace("_", "-"), set()).add(version)
    return found


def test_lock_names_no_registry_and_hashes_everything():
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links|^-f ", text, re.M)
    blocks = re.split(r"^(?=[A-Za-z0-9._-]+(?:\[[^\]]*\])?==)", text, flags=re.M)[1:]
    assert len(blocks) > 100
    for block in blocks: assert "--hash=sha256:" in block, block.splitlines()[0]
    assert not (ROOT / "uv.lock").exists()


def test_lock_holds_what_the_project_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values()
                                          for r in extra)]
    versions = locked()
    for requirement in wanted:
        name = re.match(r"[A-Za-z0-9._-]+", requirement).group().lower().replace("_", "-")
        if name == "amcl-suite": continue
        assert name in versions, f"{requirement} is not locked; run bash scripts/relock.sh"
        if exact := re.search(r"==([^,;\s]+)", requirement): assert exact.group(1) in versions[name]


def test_torch_is_the_published_one():
    assert locked()["torch"] == {"2.11.0"} and locked()["torchaudio"] == {"2.11.0"}


def test_ci_runs_only_what_a_user_can():
    lines = [line.strip() for line in (ROOT / ".ci/run").read_text().splitlines()]
    commands = [line for line in lines if line and not line.startswith(("#", "set ", "cd ", "if "))]
    assert commands == ["bash scripts/system.sh", "bash scripts/test.sh"]
    readme = (ROOT / "README.md").read_text()
    for script in ("reproduce", "test", "docs", "system"):
        assert f"bash scripts/{script}.sh" in readme


def test_readme_gives_the_times_of_amcl_list():
    from amcl_suite.reproduce.jobs import load_job
    text, wrong = (ROOT / "README.md").read_text(), {}
    told = [("headline", re.search(r"The main job above takes ([\w ]+) with one worker", text).group(1))]
    told += re.findall(r"^amcl run ([\w ]+?) +# .*?((?:\d+ h(?:ours)? ?)?(?:\d+ min)?) with one worker$", text, re.M)
    for names, time in told:
        hours, minutes = (int(found.group(1)) if (found := re.search(rf"(\d+) {unit}", time)) else 0
                          for unit in ("h", "min"))
        expected = sum(run.minutes for name in names.split() for run in load_job(name).runs)
        if abs(60 * hours + minutes - expected) > .05 * expected: wrong[names] = time, expected
    assert len(told) >= 6 and not wrong


def test_installed_package_is_complete():
    from importlib.metadata import distribution
    found = distribution("amcl_suite")
    settings = (ROOT / "settings.ini").read_text()
    assert re.search(rf"^version = {re.escape(found.version)}$", settings, re.M)
    names = {(e.group, e.name) for e in found.entry_points}
    assert {("console_scripts", "amcl"), ("nbdev", "amcl_suite")} <= names
    assert (ROOT / "LICENSE").read_text().lstrip().startswith("Apache License")
