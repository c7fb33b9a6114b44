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


def test_a_broken_page_is_found(tmp_path):
    root = copy_project(tmp_path, ["00_core/06_tables.ipynb", "00_core/05_records.ipynb"])
    tables = root / "nbs" / "00_core" / "06_tables.ipynb"
    append(tables, "See @fig-core-nowhere, [this](05_records.ipynb#nothing-here) and [that](gone.ipynb).\n\n[@nobody1900none]")
    append(root / "nbs" / "00_core" / "05_records.ipynb", "$$\\frac{1$$")
    faults = dict.fromkeys(f"{page}: {fault}" for page, fault in docs.build(root, say=lambda line: None))
    text = "\n".join(faults)
    assert "nobody1900none" in text              # an unknown citation stops its page
    assert "00_core/records.html: " in text and "TeX math" in text


def test_dead_links_and_references_are_found(tmp_path):
    root = copy_project(tmp_path, ["00_core/06_tables.ipynb", "00_core/05_records.ipynb"])
    append(root / "nbs" / "00_core" / "06_tables.ipynb",
           "See @fig-core-nowhere, [this](05_records.ipynb#nothing-here) and [that](gone.ipynb).")
    faults = [fault for page, fault in docs.build(root, say=lambda line: None) if page == "00_core/tables.html"]
    for expected in ("unresolved reference @fig-core-nowhere", "no such anchor records.html#nothing-here", "dead link gone.ipynb"):
        assert expected in faults


def test_a_failing_export_names_its_notebook(tmp_path):
    root = copy_project(tmp_path, ["00_core/01_settings.ipynb"])
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
