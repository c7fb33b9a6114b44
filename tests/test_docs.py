"The site can be built without Quarto, what is broken is found, and what a host runs exists."
import base64, json, re, shutil, subprocess, sys
from pathlib import Path

import pytest, yaml
from amcl_suite.reproduce import api, code, docs, site
from site_fixture import CHAPTERS, ROOT, copy_project, markdown, whole_site, write_notebook

WATCHES = ("README.md", ".github", "scripts")


def append(path: Path, text: str):
    "Append a Markdown cell to a notebook."
    book = json.loads(path.read_text(encoding="utf-8"))
    book["cells"].append(markdown(text) | {"id": "ffffffff"})
    path.write_text(json.dumps(book), encoding="utf-8")


@pytest.mark.slow
def test_every_page_builds_and_everything_resolves():
    folder, faults = whole_site()
    assert not faults, "\n".join(f"{page}: {fault}" for page, fault in faults)
    pages = {path: path.read_text(encoding="utf-8") for path in folder.rglob("*.html")}
    assert len(pages) == len(CHAPTERS) + 1               # and the page of media
    whole = "".join(pages.values())
    assert "<math" in whole and 'src="data:image/png' in whole and "csl-entry" in whole
    assert not re.search(r'(?:src|data|poster)="(?:https?:)?//', whole)   # nothing from elsewhere
    media = (folder / "90_results/media.html").read_text(encoding="utf-8")
    assert "data:audio/wav" in media and "data:image/gif" in media and "data:image/svg" in media
    assert "Figure 1: It moves." in media
    sharp = pages[folder / "70_core/plots.html"]         # stored at up to twice the size shown
    found = re.findall(r'<img[^>]*src="data:image/png;base64,([^"]+)"[^>]*\bwidth="(\d+)"', sharp)
    assert len(found) >= 2
    for picture, width in found:
        pixels = int.from_bytes(base64.b64decode(picture)[16:20])      # of the header of a PNG
        assert 1.49 < pixels / int(width) < 2.01, (pixels, width)


@pytest.mark.slow
def test_equations_become_mathml():
    folder, _ = whole_site()
    text = lambda path: path.read_text(encoding="utf-8")
    for source in CHAPTERS:
        cells = code.read_cells(ROOT / "nbs" / source)
        if not any("$$" in docs.prose(c.source) for c in cells if c.kind == "markdown"): continue
        name = re.sub(r"^\d+_", "", Path(source).stem) + ".html"
        assert "<math display=\"block\"" in text(folder / Path(source).parent / name), source


@pytest.mark.slow
def test_api_page_lists_and_links_every_public_name():
    folder, _ = whole_site()
    page = (folder / "api.html").read_text(encoding="utf-8")
    names = [name for module in api.modules(ROOT) for name in module.names]
    assert len(names) > 100
    assert not [name.name for name in names if f"><code>{name.name}</code></a>" not in page]
    assert 'href="10_mcl/assignment.html#annealed"' in page


def small_project(folder: Path, *chapters: str) -> Path:
    "Copy some chapters and put a short front page before them, so that processing takes seconds."
    root = copy_project(folder, chapters)
    write_notebook(root / "nbs" / "index.ipynb", [markdown("# Front\n> Short")])
    return root


@pytest.mark.slow
def test_what_is_broken_is_found_and_the_other_pages_are_built(tmp_path):
    names = ("702_settings", "724_records", "730_tables")
    settings, records, tables = chapters = [f"70_core/{name}.ipynb" for name in names]
    root = small_project(tmp_path, *chapters)
    append(root / "nbs" / settings, "As @nobody1900none says.")
    append(root / "nbs" / records, "$$\\frac{1$$")
    append(root / "nbs" / tables, "See @fig-core-nowhere, [this](724_records.ipynb#nothing-here), "
           "[that](gone.ipynb). ![](https://x.org/a.png)\n\n```python\nclass A(*args, **kwargs)\n```\n\n"
           "```python\ndef f(\n    a, # [`b`](https://x.org)\n)\n```")
    faults = site.build(root, say=lambda line: None)
    text = "\n".join(f"{page}: {fault}" for page, fault in faults)
    for page, expected in (("settings", "citation nobody1900none not found"),
                           ("records", "TeX math"),
                           ("tables", "unresolved reference @fig-core-nowhere"),
                           ("tables", "no such anchor records.html#nothing-here"),
                           ("tables", "dead link gone.ipynb"), ("tables", "loads from elsewhere"),
                           ("tables", "1 pictures without alternative text"),
                           ("tables", "a signature without its fields: class A"),
                           ("tables", "a link inside the signature def f")):
        matching = [f for p, f in faults if p == f"70_core/{page}.html" and expected in f]
        assert matching, f"{expected}\n{text}"
    assert "<h1>Tables</h1>" in (root / "_docs/70_core/tables.html").read_text()


def test_a_failing_export_names_its_notebook(tmp_path):
    root = small_project(tmp_path, "70_core/702_settings.ipynb")
    path = root / "nbs/70_core/702_settings.ipynb"
    book = json.loads(path.read_text())
    book["cells"].append(dict(cell_type="code", id="eeeeeeee", metadata={}, outputs=[],
                              source="#| export\nno_such_name", execution_count=None))
    path.write_text(json.dumps(book))
    with pytest.raises(site.DocsError, match="Settings"): site.build(root, say=lambda line: None)
    assert not (root / "_docs").exists()          # a failed build leaves no half site


def test_readme_is_a_function_of_the_index(tmp_path):
    text, pictures = docs.readme(ROOT)
    assert (text, pictures) == docs.readme(ROOT)
    assert text == (ROOT / "README.md").read_text(encoding="utf-8")
    for expected in ("bash scripts/reproduce.sh", "bash scripts/test.sh", "```python"):
        assert expected in text
    assert pictures and all(p.startswith(b"\x89PNG") for p in pictures.values())
    # shown anywhere: no path, and what stands behind each address is in the repository
    assert not docs.links([code.Cell("markdown", text)])
    host = docs.project_setting(ROOT, "git_url")
    targets = re.findall(rf"\]\({re.escape(host)}/(blob|raw)/main/([^)#]+)", docs.prose(text))
    assert len(targets) > 10 and {kind for kind, _ in targets} == {"blob", "raw"}
    for _, target in targets: assert (ROOT / target).exists(), target


def test_no_two_entries_of_a_section_share_a_name():
    names = {}
    for section, _, sources in docs.sidebar(ROOT):
        for source in sources:
            title = docs.read_title(code.read_cells(ROOT / "nbs" / source))[0]
            names.setdefault((section, title.lower()), []).append(source)
    assert not [sources for sources in names.values() if len(sources) > 1]


def test_command_line_refuses_unknown_options():
    command = [sys.executable, ROOT / "scripts" / "build_docs", "--no-such"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "usage" in done.stderr


def test_quarto_settings_ask_no_server_and_name_files_that_exist():
    settings = yaml.safe_load((ROOT / "_quarto.yml").read_text())
    page = settings["format"]["html"]
    assert page["html-math-method"] == "mathml"
    assert set(page["theme"]) == {"light", "dark"}
    assert all("theme.scss" in themes for themes in page["theme"].values())
    assert "$web-font-path: false;" in (ROOT / "nbs/theme.scss").read_text()
    for name in (page["css"], settings["website"]["favicon"], settings["bibliography"]):
        assert (ROOT / "nbs" / name).is_file(), name


# --- what a host runs ---

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_are_valid_and_run_scripts_that_exist(path):
    text = path.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert workflow["jobs"] and True in workflow       # YAML reads the key `on` as a truth value
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert all("uses" in step or "run" in step for step in steps)
    assert all(re.fullmatch(r"[\w./-]+@v\d+", step["uses"]) for step in steps if "uses" in step)
    scripts = re.findall(r"\bscripts/[\w./-]+", text)
    assert "://" not in text                           # no address of a registry or any other host
    assert scripts and all((ROOT / name).is_file() for name in scripts), scripts


def test_both_workflows_are_there():
    assert [path.name for path in WORKFLOWS] == ["site.yml", "test.yml"]


def test_system_script_is_quiet_when_nothing_is_missing_and_never_fails(tmp_path):
    script, bash = ROOT / "scripts" / "system.sh", shutil.which("bash")
    for name in ("chromium", "slurmctld", "munged", "espeak-ng"):   # stand-ins for what the packages bring
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    only = {"PATH": str(tmp_path), "SBIN": "/nowhere"}
    run = lambda: subprocess.run([bash, script], env=only, capture_output=True, text=True)
    done = run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (tmp_path / "munged").unlink()
    done = run()                                           # no apt-get on this path
    assert done.returncode == 0 and "munge" in done.stdout and "skip" in done.stdout
