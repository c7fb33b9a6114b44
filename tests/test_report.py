"""Records of every age and kind, and the report that is made from them."""
import json
import math
import re
import shutil
import zipfile

import pytest
from amcl_suite.core.files import write_json_atomic
from amcl_suite.core.reading import Cost, RecordError, cost, read_arrays, read_record
from amcl_suite.core.records import SCHEMA_VERSION, make_row, open_run
from amcl_suite.core.settings import project_root
from amcl_suite.reproduce import report, report_page
from amcl_suite.reproduce.report import collect, result_groups, tidy_rows, warning_lines
from amcl_suite.reproduce.report_page import write_report

WATCHES = ("nbs/90_results/records",)     # for scripts/test.sh --changed

HOSTILE = '<script>alert("&1")</script><img src=x onerror=alert(2)>|](javascript:alert(3))'


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("AMCL_RUNS_PATH", str(tmp_path / "runs"))
    monkeypatch.setenv("AMCL_ROOT", str(tmp_path))
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nlib_name = amcl_suite\n")
    return tmp_path / "runs"


def rows_of(dataset="yacht", **changes):
    return [make_row(**{"table": "Table 1", "dataset": dataset, "method": method, "metric": "RMSE",
                        "unit": "points", "value": value, "std": 0.25, "n": 20, "scale": "full",
                        "paper": 1.5, "paper_spread": 0.1, "paper_source": "Table 1"} | changes)
            for method, value in (("MCL", 1.25), ("aMCL", 1.0))]


def leave(runs, name, job="toy", hash="00", **changes):
    """Write a record as a worker would; return its folder."""
    record = {"schema": SCHEMA_VERSION, "job": job, "name": name, "notebook": "nbs/10_toy.ipynb",
              "parameters": {"n": 1, "dataset": name}, "hash": hash, "state": "finished",
              "started": "2026-01-01T00:00:00+0000", "attempts": 1, "where": "local", "gpus": [],
              "processes": 1, "seconds": 60.0, "seconds_all": 60.0, "peak_memory_mb": 100.0,
              "experiment": "toy", "rows": rows_of(name), "figures": [], "notes": [], "error": None,
              "environment": {"version": "0.1.0", "commit": "c0ffee" * 6 + "0000"}} | changes
    folder = runs / job / f"{name}-{str(hash)[:8]}"
    write_json_atomic(folder / "record.json", record)
    return folder


def plain(page):
    """Return a page without the script and the style that are ours."""
    return page.replace(report_page._SCRIPT, "").replace(report_page._STYLE, "")


# --- records -------------------------------------------------------------------------------------

def test_committed_records_stay_readable():
    paths = sorted((project_root() / "nbs/90_results/records").glob("*/*/record.json"))
    assert paths
    for path in paths:
        written, read = json.loads(path.read_text()), read_record(path)
        assert written["schema"] == SCHEMA_VERSION and len(read["rows"]) == len(written["rows"])


@pytest.mark.parametrize("changes, told", [
    ({"schema": 99}, "newer amcl_suite (schema 99, this one knows 2); update"),
    ({"schema": 0}, "schema version 0 can't be read"),
    ({"schema": 1}, "schema version 1 can't be read"), ({"schema": None}, "no schema version"),
    ({"schema": True}, "no schema version"), ({"schema": "2"}, "no schema version"),
    ({"state": "bored"}, "unknown state 'bored'"), ({"hash": 5}, "hash is missing or no str"),
    ({"parameters": []}, "parameters is missing or no dict"),
    ({"gpus": 2}, "gpus is missing or no list"),
    ({"attempts": True}, "attempts is missing or no int"), ({"seconds_all": "1 h"}, "no number"),
    ({"rows": {}}, "rows is missing or no list"), ({"rows": [1]}, "rows[0] is missing or no dict"),
    ({"rows": [{"method": "a", "metric": "b", "value": None, "scale": "full", "better": ""}]},
     "rows[0].value is missing or no number"),
    ({"figures": [{"name": "a"}]}, "figures[0].file is missing"),
    ({"error": "it broke"}, "error is missing or no dict")])
def test_wrong_records_are_named_and_do_not_stop_the_report(runs, changes, told):
    folder = leave(runs, "bad", **changes)
    leave(runs, "good")
    with pytest.raises(RecordError) as error: read_record(folder)
    assert told in str(error.value) and str(folder / "record.json") in str(error.value)
    found = write_report(("toy",)).found
    assert [r["name"] for r in found.records] == ["good"] and told in found.unreadable[0]
    assert f"Left out: {folder}" in (runs / "toy" / "report.md").read_text()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe", b"[" * 100_000,
                                     b'{"schema": ' + b"9" * 10_000 + b"}", b"\x80\x04\x95pickle"])
def test_unreadable_files(runs, content):
    folder = leave(runs, "bad")
    (folder / "record.json").write_bytes(content)
    with pytest.raises(RecordError, match="not a record"): read_record(folder)


def test_special_numbers_come_back(runs):
    values = [math.nan, math.inf, -math.inf]
    folder = leave(runs, "a", rows=[*rows_of(value=math.nan, per_split=values)])
    row = read_record(folder)["rows"][0]
    assert (math.isnan(row["value"]) and math.isnan(row["per_split"][0])
            and row["per_split"][1:] == values[1:])


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self): return (open, (str(tmp_path / "sprung"), "w"))
    import numpy as np
    np.savez(tmp_path / "arrays.npz", trap=np.array([Trap()], dtype=object))
    with pytest.raises(RecordError, match="allow_pickle=False"): read_arrays(tmp_path)
    assert not (tmp_path / "sprung").exists()
    (tmp_path / "arrays.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(RecordError, match="can't be read"): read_arrays(tmp_path)
    with zipfile.ZipFile(tmp_path / "arrays.npz", "w") as file: file.writestr("a.npy", b"no array")
    with pytest.raises(RecordError, match="a is no array"): read_arrays(tmp_path)


def test_cost_counts_attempts_processes_and_gpus():
    runs = [{"seconds_all": 7200.0, "seconds": 10.0, "gpus": [0, "GPU-1"], "processes": 2},
            {"seconds": 3600.0}, {"state": "pending"}]
    assert cost(iter(runs)) == Cost(runs=3, worker_hours=5.0, gpu_hours=4.0, peak_memory_mb=0)


# --- which records count -------------------------------------------------------------------------

def test_superseded_records_are_named_and_not_used(runs):
    leave(runs, "a", hash="11" * 32, rows=rows_of("a", value=9.0))
    folder = leave(runs, "a", hash="22" * 32, started="2026-01-02T00:00:00+0000")
    leave(runs, "a", hash="33" * 32, started="2026-01-03T00:00:00+0000", state="failed", rows=[],
          error={"line": "ValueError: later, and broken", "kind": "error"})
    made = write_report(("toy",))
    assert [r["folder"] for r in made.found.records] == [folder] and len(made.found.superseded) == 2
    page = plain(made.html.read_text())
    assert "(1 failed) are left out" in page and "9.0" not in page
    for there in ("a-11111111", "a-33333333", "2026-01-03", "failed: ValueError: later"):
        assert there in page
    assert "together" in page                       # their cost counts


@pytest.mark.parametrize("first, second, wins", [
    ({"started": "2026-01-01T12:00:00+0200"}, {"started": "2026-01-01T11:00:00+0000"}, "22"),
    ({"started": "1970-01-01T00:00:00+0000", "environment": {"version": "0.10.0"}}, {}, "11"),
    ({"started": "soon"}, {}, "22"), ({"started": None, "attempts": 3}, {"started": None}, "11"),
    ({"state": "running"}, {"state": "failed", "started": "1970-01-01T00:00:00+0000"}, "11")])
def test_which_record_counts(runs, first, second, wins):
    leave(runs, "a", hash="11" * 32, **first)
    leave(runs, "a", hash="22" * 32, **second)
    assert collect().records[0]["hash"][:2] == wins


def test_versions_are_never_mixed_silently(runs):
    other = {"version": "0.2.0", "commit": "decade" * 6 + "+changes"}
    for name, about in (("wine", None), ("yacht", None), ("boston", other), ("energy", other)):
        leave(runs, name, **({"environment": about} if about else {}))
    made = write_report(("toy",))
    group, = made.groups
    assert (group.full.columns[:4] == ("dataset", "method", "metric", "code")
            and len(group.full) == 8)
    assert {row[0]: row[3] for row in group.full.rows} == {
        "wine": "0.1.0 c0ffeec0ffee", "yacht": "0.1.0 c0ffeec0ffee",
        "boston": "0.2.0 decadedecade+changes", "energy": "0.2.0 decadedecade+changes"}
    assert [sorted(row[0] for row in grid.rows) for grid in group.grids] == [["boston", "energy"],
                                                                             ["wine", "yacht"]]
    assert "0.1.0 c0ffeec0ffee: toy/wine, toy/yacht" in group.warning
    assert any("several versions" in line for line in warning_lines(made.found))
    for text in (made.html.read_text(), made.markdown.read_text()): assert group.warning in text
    one = write_report(("toy",), only=("version=0.2.0",)).groups[0]
    assert one.warning == "" and "code" not in one.full.columns


def test_numbers_are_printed_as_the_runs_formed_them(runs):
    """Two runs that measured the same thing stay two rows; nothing is averaged."""
    leave(runs, "a", hash="11" * 32, rows=rows_of("wine", value=1.0))
    leave(runs, "b", hash="22" * 32, rows=rows_of("wine", value=3.0))
    full = result_groups(tidy_rows(collect().records))[0].full
    assert ([row[full.columns.index("ours ± std")] for row in full.rows] == ["1.00 ± 0.25"] * 2
            + ["3.00 ± 0.25"] * 2)
    assert {row[full.columns.index("run")] for row in full.rows} == {"toy/a-11111111",
                                                                     "toy/b-22222222"}


# --- filters -------------------------------------------------------------------------------------

@pytest.fixture
def sweep(runs):
    for i, dataset in enumerate(("yacht", "wine", "boston")):
        leave(runs, dataset, hash=f"{i}{i}" * 32,
              parameters={"dataset": dataset, "rate": 0.1 * (i + 1), "fast": i == 0})
    leave(runs, "late", state="failed", rows=[], parameters={"dataset": "wine", "rate": 0.5,
                                                             "fast": False},
          error={"line": "ValueError: no", "kind": "error"}, experiment="")
    return runs


@pytest.mark.parametrize("only, left", [
    ((), "boston late wine yacht"), (("dataset=wine",), "late wine"),
    (("dataset=wine", "dataset=yacht"), "late wine yacht"),
    (("dataset=wine", "state=finished"), "wine"), (("rate=0.10",), "yacht"),
    (("fast=true",), "yacht"),
    (("fast=False", "method=aMCL"), "boston wine"), (("commit=c0ffee",), "boston late wine yacht"),
    (("name=late",), "late"),
    (("job=toy", "experiment=toy", "notebook=nbs/10_toy.ipynb", "table=Table 1", "metric=RMSE",
                                "setting=", "scale=full", "version=0.1.0"), "boston wine yacht")])
def test_filters(sweep, only, left):
    found = collect(only=only)
    assert " ".join(r["name"] for r in found.records) == left and found.only == only
    made = write_report(("toy",), only=only)
    assert only == () or f"Filtered: only {', '.join(only)}" in made.html.read_text()


def test_filters_of_rows_keep_only_these_rows(sweep):
    rows = tidy_rows(collect(only=("method=aMCL", "dataset=wine")).records)
    assert [(row["dataset"], row["method"]) for row in rows] == [("wine", "aMCL")]


@pytest.mark.parametrize("only, told", [
    (("dataste=wine",), "unknown key 'dataste', did you mean 'dataset'?"),
    (("dataset",), "expected KEY=VALUE"),
    (("dataset=whine",), "no record has dataset=whine, did you mean 'wine'?"),
    (("dataset=wine", "dataset=whine"), "did you mean 'wine'?"),
    (("rate=0.7",), "no record has rate=0.7"),
    (("dataset=boston", "name=wine"), "no record fulfils all of dataset=boston, name=wine"),
    (("state=done",), "finished")])
def test_bad_filters_name_the_nearest(sweep, only, told):
    with pytest.raises(ValueError, match="only: ") as error: write_report(("toy",), only=only)
    assert told in str(error.value)


def test_filter_looks_at_older_records_too(runs):
    leave(runs, "a", hash="11" * 32, environment={"version": "0.0.9"})
    leave(runs, "a", hash="22" * 32)
    assert collect(only=("version=0.0.9",)).records[0]["hash"][:2] == "11"


# --- files ---------------------------------------------------------------------------------------

def test_hostile_text_stays_text(runs):
    rows = rows_of(HOSTILE, table=HOSTILE, metric=HOSTILE, setting=HOSTILE, paper_source=HOSTILE,
                   unit=HOSTILE)
    folder = leave(runs, "a", rows=rows * 4, notes=[HOSTILE], data={HOSTILE: ""},
                   experiment=HOSTILE,
                   figures=[{"name": HOSTILE, "file": "figures/a.png", "caption": HOSTILE},
                            {"name": "gone", "file": "../../../etc/passwd", "caption": HOSTILE}],
                   environment={"version": HOSTILE, "commit": HOSTILE, "processor": HOSTILE,
                                "packages": {HOSTILE: "1"}})
    leave(runs, "b", state="failed", error={"line": HOSTILE, "kind": HOSTILE}, slurm_job=HOSTILE,
          rows=[])
    (folder / "figures").mkdir()
    (folder / "figures" / "a.png").write_bytes(b"\x89PNG")
    made = write_report(("toy",), title=HOSTILE)
    page, text = made.html.read_text(), made.markdown.read_text()
    assert page.count("<script") == 1 and page.count("<script>" + report_page._SCRIPT) == 1
    assert ("<img src=x" not in page + text and "<script" not in text
            and "](javascript" not in text.replace("\\|](", ""))
    assert "lies outside its run" in page and not re.search(r'[ "]on\w+="', plain(page))


def test_page_asks_nobody_and_its_policy_allows_one_script(sweep):
    import base64
    import hashlib
    page = write_report(("toy",)).html.read_text()
    outside = r"https?://|//\w|<link|@import|url\(|<iframe|<form|srcdoc|style="
    assert not re.search(outside, plain(page))
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'none'" and "unsafe" not in policy and "*" not in policy
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        content = re.search(f"<{tag}>(.*?)</{tag}>", page, re.S)[1]
        checksum = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert directives[directive] == f"'sha256-{checksum}'"
    anchors = re.findall(r' id="([^"]+)"', page)
    assert (len(anchors) == len(set(anchors)) and set(re.findall(r'href="#([^"]+)"', page))
            <= set(anchors))


def test_sections_with_one_title_have_two_anchors(runs):
    leave(runs, "a", rows=[*rows_of(table="Cost"), *rows_of(table="cost!"), *rows_of(table="main")])
    page = write_report().html.read_text()
    assert ('id="cost-full-scale"' in page and 'id="cost-full-scale-2"' in page
            and page.count('id="main"') == 1)


def test_parquet_round_trip(sweep):
    pandas = pytest.importorskip("pandas")
    leave(sweep, "odd", rows=rows_of("odd", value=math.inf, std=None, per_split=[1.0, math.nan]),
          parameters={"n": "many"})
    made = write_report(("toy",))
    frame, rows = pandas.read_parquet(made.parquet), tidy_rows(made.found.records)
    assert len(frame) == len(rows) == 8 and set(frame) == {key for row in rows for key in row}
    odd = frame[frame.run == "odd"]
    assert (list(odd.value) == [math.inf] * 2 and odd["std"].isna().all()
            and list(odd["parameter.n"]) == ["many"] * 2)
    assert odd.per_split.iloc[0][0] == 1.0 and math.isnan(odd.per_split.iloc[0][1])
    assert list(frame[frame.run == "wine"]["value"]) == [1.25, 1.0]
    # no rows of before
    assert len(pandas.read_parquet(write_report(("toy",), only=("state=failed",)).parquet)) == 0


def test_a_thousand_records_are_read_once(runs, monkeypatch):
    """Bounded work: each record is read once; page and tables grow with the rows, not faster."""
    for i in range(1000): leave(runs, f"d{i:04d}", hash=f"{i:04d}" * 16, parameters={"n": i})
    read, calls = report.read_record, []
    monkeypatch.setattr(report, "read_record", lambda path: calls.append(path) or read(path))
    made = write_report(("toy",))
    assert (len(calls) == 1000 and len(made.found.records) == 1000
            and len(made.groups[0].full) == 2000)
    assert made.html.stat().st_size < 1000 * len(made.groups[0].full)
    assert len(write_report(("toy",), only=("n=7", "n=8")).found.records) == 2


def test_sounds_and_large_files(runs, monkeypatch):
    folder = leave(runs, "a")
    run = open_run(folder)
    run.audio([0.0, 0.5, -2.0, 0.0], "loud", 8000, "A click")
    run.audio([0.0] * 4000, "long", 8000, "Silence")
    leave(runs, "a", sounds=run.sounds)
    monkeypatch.setattr(report_page, "MAX_FILE", 4000)
    page = write_report(("toy",)).html.read_text()
    assert page.count("<audio controls") == 1 and "data:audio/wav;base64,UklGR" in page
    assert "A click (heard at 0.5 of its level)" in page
    assert ("long (0.0 MB) is too large to be kept in this page" in page
            and str(folder / "sounds" / "long.wav") in page)
    assert "[A click](a-00/sounds/loud.wav)" in (runs / "toy" / "report.md").read_text()


def test_cost_and_failures(runs):
    leave(runs, "a", where="slurm", gpus=[0, 1], processes=2, seconds_all=5400.0, attempts=2,
          peak_memory_mb=900.0)
    leave(runs, "b", state="failed", rows=[], attempts=3, slurm_job="12_1",
          error={"line": "over time", "kind": "timeout"})
    leave(runs, "c", state="running", rows=[])
    text = write_report(("toy",)).markdown.read_text()
    assert "| toy | 3 | 3.03 | 3.00 | 900 MB |" in text
    assert re.search(r"\| toy/b \| timeout, Slurm job 12_1 \| 3 \| over time \| .*executed.ipynb",
                     text)
    assert re.search(r"\| toy/c \| interrupted \| 1 \|", text)


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
def test_filter_in_a_browser(sweep):
    playwright = pytest.importorskip("playwright.sync_api")
    for i in range(4): leave(sweep, f"more{i}", hash=f"a{i}" * 32)
    made, said = write_report(("toy",)), []
    with playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=shutil.which("chromium"),
                                         args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        for event in ("console", "pageerror", "requestfailed"):
            page.on(event, lambda e: said.append(str(e)))
        page.goto(made.html.as_uri())
        group = page.locator("section", has=page.locator("#table-1-full-scale"))
        assert group.locator("output").inner_text() == "14 of 14 rows"
        group.locator("input").press_sequentially("wine amcl")
        assert (group.locator("output").inner_text() == "1 of 14 rows"
                and group.locator("details[open]").count() == 1)
        for key in ("Tab", "Tab", "Tab", "Enter"): page.keyboard.press(key)
        assert group.locator("output").inner_text() == "14 of 14 rows"  # the button, reached by Tab
        group.locator("select[name=method]").select_option("MCL")
        assert group.locator("output").inner_text() == "7 of 14 rows"
        assert page.evaluate("document.documentElement.scrollWidth") == 390 and not said
        without = browser.new_context(java_script_enabled=False).new_page()
        without.goto(made.html.as_uri())
        assert (without.locator("tbody tr").count()
                and not without.locator(".filter").first.is_visible())
        browser.close()
