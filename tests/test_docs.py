"The site can be built without Quarto, and what is broken is found."
import json, shutil, subprocess, sys
from pathlib import Path

import pytest
from amcl_suite.reproduce import docs

ROOT = Path(__file__).resolve().parents[1]


def copy_project(folder: Path, chapters) -> Path:
    "Copy what the docs need, with some chapters only."
    for name in ("settings.ini", "pyproject.toml", "_quarto.yml"): shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "amcl_suite", folder / "amcl_suite", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("index.ipynb", "references.bib", "styles.css", "_quarto.yml", *chapters):
        (folder / "nbs" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "nbs" / name, folder / "nbs" / name)
    return folder


def append(path: Path, text: str):
    "Append a Markdown cell to a notebook."
    book = json.loads(path.read_text(encoding="utf-8"))
    book["cells"].append(dict(cell_type="markdown", id="ffffffff", metadata={}, source=text))
    path.write_text(json.dumps(book), encoding="utf-8")


@pytest.mark.slow
def test_every_page_builds_and_everything_resolves(tmp_path):
    chapters = [p.relative_to(ROOT / "nbs").as_posix() for p in docs.notebooks(ROOT)]
    faults = docs.build(copy_project(tmp_path, chapters), say=lambda line: None)
    assert not faults, "\n".join(f"{page}: {fault}" for page, fault in faults)
    pages = list((tmp_path / "_docs").rglob("*.html"))
    assert len(pages) == len(chapters)
    text = "".join(p.read_text(encoding="utf-8") for p in pages)
    assert "<math" in text and 'src="data:image/png' in text and "csl-entry" in text
    assert "src=\"http" not in text and "<script" not in text      # nothing is loaded from elsewhere


def small_project(folder: Path, *chapters: str) -> Path:
    "Copy some chapters and put a short front page before them, so that processing takes seconds."
    root = copy_project(folder, chapters)
    front = dict(cell_type="markdown", id="aaaaaaaa", metadata={}, source="# Front\n> Short")
    (root / "nbs" / "index.ipynb").write_text(json.dumps(dict(cells=[front], metadata={}, nbformat=4, nbformat_minor=5)))
    return root


def test_what_is_broken_is_found_and_the_other_pages_are_built(tmp_path):
    settings, records, tables = (f"00_core/{n}.ipynb" for n in ("01_settings", "05_records", "06_tables"))
    root = small_project(tmp_path, settings, records, tables)
    append(root / "nbs" / settings, "As @nobody1900none says.")
    append(root / "nbs" / records, "$$\\frac{1$$")
    append(root / "nbs" / tables, "See @fig-core-nowhere, [this](05_records.ipynb#nothing-here) and [that](gone.ipynb).")
    faults = docs.build(root, say=lambda line: None)
    text = "\n".join(f"{page}: {fault}" for page, fault in faults)
    for page, expected in (("settings", "citation nobody1900none not found"), ("records", "TeX math"),
                           ("tables", "unresolved reference @fig-core-nowhere"),
                           ("tables", "no such anchor records.html#nothing-here"), ("tables", "dead link gone.ipynb")):
        assert any(p == f"00_core/{page}.html" and expected in fault for p, fault in faults), f"{expected}\n{text}"
    assert "<h1>Tables</h1>" in (root / "_docs/00_core/tables.html").read_text()


def test_a_failing_export_names_its_notebook(tmp_path):
    root = small_project(tmp_path, "00_core/01_settings.ipynb")
    book = json.loads((root / "nbs/00_core/01_settings.ipynb").read_text())
    book["cells"].append(dict(cell_type="code", id="eeeeeeee", metadata={}, source="#| export\nno_such_name", outputs=[], execution_count=None))
    (root / "nbs/00_core/01_settings.ipynb").write_text(json.dumps(book))
    with pytest.raises(docs.DocsError, match="Settings"): docs.build(root, say=lambda line: None)
    assert not (root / "_docs").exists()          # a failed build leaves no half site


def test_readme_is_a_function_of_the_index(tmp_path):
    text, pictures = docs.readme(ROOT)
    assert (text, pictures) == docs.readme(ROOT)
    assert text == (ROOT / "README.md").read_text(encoding="utf-8")
    assert "bash scripts/reproduce.sh" in text and "bash scripts/test.sh" in text and "```python" in text
    assert pictures and all(p.startswith(b"\x89PNG") for p in pictures.values())
    for target in docs.links([docs.Cell("markdown", text)]): assert (ROOT / target.partition("#")[0]).exists(), target


def test_command_line_refuses_unknown_options():
    done = subprocess.run([sys.executable, ROOT / "scripts" / "build_docs", "--no-such"], capture_output=True, text=True)
    assert done.returncode == 2 and "usage" in done.stderr
