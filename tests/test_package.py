"What a user gets by pip, and the papers that lie beside the code: extras, types, changes, citation, forms."
import re, subprocess, sys, tomllib
from pathlib import Path

import pytest, yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
WATCHES = ("pyproject.toml", "requirements.lock", "amcl_suite", "CHANGELOG.md", "CONTRIBUTING.md",
           "CITATION.cff", ".github")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
RUN = {"papermill", "ipykernel", "submitit", "tensorboard"}
EXTRAS = PROJECT["project"]["optional-dependencies"]


def names(requirements: list[str]) -> dict[str, Requirement]:
    return {r.name.lower(): r for r in map(Requirement, requirements)}


def test_base_install_is_a_library_and_run_brings_the_rest():
    base = names(PROJECT["project"]["dependencies"])
    assert not RUN & base.keys() and RUN <= names(EXTRAS["run"]).keys()
    assert "run" in names(EXTRAS["all"])["amcl_suite"].extras
    for name, oldest in (("torch", "2.7.0"), ("torchvision", "0.22.0")):
        assert base[name].specifier.contains(oldest) and base[name].specifier.contains("2.11.0")


def test_lock_fulfils_what_is_asked_for():
    locked = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "requirements.lock").read_text(), re.M))
    asked = [*PROJECT["project"]["dependencies"], *(r for extra in EXTRAS.values() for r in extra)]
    for requirement in map(Requirement, asked):
        if requirement.name == "amcl_suite": continue
        version = locked[requirement.name.lower().replace("_", "-")]
        assert requirement.specifier.contains(version), f"{requirement}: {version} is locked"
    kept = names(PROJECT["tool"]["uv"]["constraint-dependencies"])    # also by relock.sh --upgrade
    assert {name: f"=={locked[name]}" for name in kept} == {n: str(r.specifier) for n, r in kept.items()}
    assert {"torch", "torchvision", "torchaudio"} == kept.keys()


@pytest.mark.slow
def test_library_loads_without_any_extra():
    gone = RUN | {"asteroid", "librosa", "soundfile", "torchaudio", "speechbrain", "transformers",
                  "nbdev", "execnb", "pypandoc", "pytest", "playwright"}
    code = (f"import sys, importlib, pkgutil\nsys.modules.update(dict.fromkeys({gone!r}))\n"
            "import amcl_suite\n"
            "for part in ('core', 'mcl', 'ensembles', 'reproduce'):\n"
            "    for module in pkgutil.iter_modules(getattr(amcl_suite, part).__path__):\n"
            "        importlib.import_module(f'amcl_suite.{part}.{module.name}')\n"
            "print(len(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_types_are_declared_and_shipped():
    assert (ROOT / "amcl_suite" / "py.typed").is_file()
    assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"]["amcl_suite"]
    assert "Typing :: Typed" in PROJECT["project"]["classifiers"]


def test_addresses_are_those_of_the_site_and_the_repository():
    import configparser
    parser = configparser.ConfigParser()
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    get, urls = lambda key: parser["DEFAULT"][key], PROJECT["project"]["urls"]
    assert urls["Source"] == get("git_url")
    assert urls["Documentation"].rstrip("/") == get("doc_host") + get("doc_baseurl")
    assert urls["Changelog"] == f"{get('git_url')}/blob/{get('branch')}/CHANGELOG.md"


def test_changelog_keeps_its_form():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## \[([^\]]+)\]", text, re.M)
    assert releases[0] == "Unreleased"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", name) for name in releases[1:])
    assert set(re.findall(r"^### (.*)$", text, re.M)) <= {
        "Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_contributing_leads_to_files_and_commands_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^):]+)\)", text)
    assert targets and all((ROOT / target).is_file() for target in targets)
    scripts = re.findall(r"scripts/[\w.]+\w", text)
    assert scripts and all((ROOT / script).exists() for script in scripts)


def test_citation_is_valid_and_names_the_papers():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()      # what the format asks for
    assert cited["version"] == PROJECT["project"]["version"]
    assert cited["license"] == PROJECT["project"]["license"]
    assert len(cited["references"]) == 5
    for paper in cited["references"]:
        assert paper["type"] in ("conference-paper", "article") and paper["title"]
        assert all(set(author) <= {"family-names", "given-names"} for author in paper["authors"])
        assert 2020 <= paper["year"] <= 2026
    library = (ROOT / "nbs/references.bib").read_text(encoding="utf-8")
    titles = [paper["title"] for paper in cited["references"]]
    assert sum(title in library for title in titles) >= 2       # those that are built are cited in the book


FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_forms_for_issues_are_valid(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.name == "config.yml":
        assert all({"name", "url", "about"} == link.keys() for link in form["contact_links"])
        return
    assert {"name", "description", "body"} <= form.keys()
    ids = [part["id"] for part in form["body"]]
    assert len(ids) == len(set(ids))
    assert all(part["type"] in ("input", "textarea", "dropdown") and part["attributes"]["label"]
               for part in form["body"])


def test_there_is_a_form_for_each_kind_of_issue():
    assert [path.stem for path in FORMS] == ["bug", "config", "new_chapter", "wrong_number"]
