"The labelling notebook in a browser, on a real Jupyter server: heard, clicked, typed, restarted."
import csv, json, os, shutil, socket, subprocess, sys, time, urllib.request

import numpy as np
import pytest
from amcl_suite.core.audio import write_audio
from amcl_suite.interactive.keeping import AnswerFile

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
pytest.importorskip("jupyterlab", reason="JupyterLab isn't installed")
pytest.importorskip("ipywidgets", reason="ipywidgets isn't installed")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(not CHROMIUM, reason="no Chromium here (bash scripts/system.sh)")]
OPTIONS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
           "--autoplay-policy=no-user-gesture-required"]
TOKEN = "only-for-this-test"


@pytest.fixture
def out(tmp_path):
    "Recordings that are prepared: two files of twenty half seconds, every third a tone."
    from amcl_suite.interactive.labelling import prepare_labels
    rng, t = np.random.default_rng(0), np.arange(4000) / 8000
    for k in range(2):
        parts = [.05 * rng.standard_normal(4000) + .3 * (n % 3 == 0) * np.sin(2e3 * np.pi * t) for n in range(20)]
        write_audio(tmp_path / "sounds" / f"day{k}.wav", np.concatenate(parts), 8000)
    out = prepare_labels(tmp_path / "sounds", seconds=.5, session_size=20, questions=6, review=4)[0]
    notebook = (out / "label.ipynb").read_text()         # also a slow machine ends its trainings in time
    (out / "label.ipynb").write_text(notebook.replace(f"label_panel({str(out)!r})", f"label_panel({str(out)!r}, patience=60)"))
    assert "patience" in (out / "label.ipynb").read_text()
    return out


@pytest.fixture
def server(out, tmp_path):
    "A Jupyter server on the folder; asks nothing of the user's own settings."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0)); port = free.getsockname()[1]
    own = {f"JUPYTER_{name}_DIR": str(tmp_path / "jupyter" / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    words = ["-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ServerApp.port_retries=0",
             f"--ServerApp.root_dir={out}", f"--IdentityProvider.token={TOKEN}", "--LabApp.news_url=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    log = open(tmp_path / "server.log", "w")
    process = subprocess.Popen([sys.executable, *words], env=os.environ | own, cwd=out, stdout=log, stderr=log)
    base = f"http://127.0.0.1:{port}"
    try:
        until(lambda: process.poll() is not None or answers_status(base), 30)
        assert process.poll() is None, (tmp_path / "server.log").read_text()[-2000:]
        yield base
    finally:
        process.terminate()
        try: process.wait(10)
        except subprocess.TimeoutExpired: process.kill()
        log.close()


def until(true, seconds=15):
    "Wait until something holds."
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(.03)
    return found


def call(base, path, method="GET"):
    request = urllib.request.Request(f"{base}/api/{path}", method=method, headers={"Authorization": f"token {TOKEN}"})
    with urllib.request.urlopen(request, timeout=10) as reply: return json.loads(reply.read() or "null")


def answers_status(base):
    try: return bool(call(base, "status"))
    except OSError: return False


def test_listen_answer_restart_go_on(server, out):
    lines = AnswerFile(out / "run" / "answers.jsonl").lines
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        page = browser.new_page(viewport=dict(width=1200, height=1000))
        page.goto(f"{server}/lab/tree/label.ipynb?token={TOKEN}")
        cell = page.locator(".jp-CodeCell").first
        head = page.locator(".amcl-do-target")

        def mark(): return page.evaluate(
            "document.activeElement.className.match(/amcl-[0-9a-f]{8}/)?.[0] || ''")

        def open_panel(old=""):
            "Run the cell until a new panel has the focus; a kernel that isn't ready drops the cell."
            page.wait_for_selector("text=(ipykernel) | Idle")
            for _ in range(6):
                cell.locator(".cm-content").click()
                page.keyboard.press("Control+Enter")
                try: return until(lambda: (new := mark()) != old and new, 8)
                except AssertionError: continue
            raise AssertionError("no panel came up")

        def press(key, n):
            page.keyboard.press(key)
            until(lambda: len(lines()) == n)

        first = open_panel()
        page.wait_for_function("document.querySelector('audio')?.duration > .4")
        head.click()                                                  # by mouse
        until(lambda: len(lines()) == 1)
        until(lambda: mark() == first)
        for n, key in enumerate("nut", 2): press(key, n)              # and by key
        assert [line["label"] for line in lines()] == [1, 0, -1, 1]
        press("z", 5)                                                 # undo
        assert lines()[-1]["label"] is None and lines()[-1]["sample"] == lines()[-2]["sample"]
        press("0", 6)
        assert [line["label"] for line in lines()][-1] == 0 and all(line["seconds"] is None or line["seconds"] > 0 for line in lines())
        page.wait_for_selector("text=4 answers saved")
        assert page.locator(".jp-CodeCell").count() == 2              # JupyterLab's own keys were not pressed

        kernel = call(server, "kernels")[0]["id"]
        call(server, f"kernels/{kernel}/restart", "POST")
        open_panel(first)
        page.wait_for_selector("text=4 answers saved")
        press("n", 7)
        press("t", 8)                                                 # the questions are over
        page.wait_for_selector("text=Flagged as target")
        page.keyboard.press("Enter")                                  # the next session
        page.wait_for_selector("text=session 2 of 2")
        while page.locator("text=All sessions are done").count() == 0:
            before = len(lines())
            page.keyboard.press("u")
            until(lambda: len(lines()) > before or page.locator("text=All sessions are done").count())
        browser.close()
    rows = list(csv.DictReader(open(out / "labels.csv")))
    assert len({(row["file"], row["start"]) for row in rows}) == len(rows) >= 6
    assert (out / "model.pt").exists() and (out / "predictions.csv").read_text().count("\n") == 41
