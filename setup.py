"Builds the package with what `amcl` reads besides modules: jobs, their notebooks, ledgers, records."
import json
import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PATTERNS = ("scripts/jobs/*.yaml", "nbs/*/claims.yaml", "nbs/*/traps.yaml", "nbs/*/_template/*",
            "nbs/*/checkpoints/*.pt", "nbs/90_results/records/**/*")


def shipped() -> list[Path]:
    "Return the files that `core.settings.suite_file` finds in the installed package."
    found = [path for pattern in PATTERNS for path in ROOT.glob(pattern) if path.is_file()]
    for job in ROOT.glob("scripts/jobs/*.yaml"):
        text = job.read_text(encoding="utf-8")
        found += [ROOT / name for name in re.findall(r"\bnotebook: *([\w./-]+\.ipynb)", text)]
    return sorted(set(found))


def without_outputs(notebook: str) -> str:
    "Return the notebook's text as it is before a run: its pictures are made anew by whoever runs it."
    content = json.loads(notebook)
    for cell in content["cells"]:
        if cell["cell_type"] == "code": cell |= {"outputs": [], "execution_count": None}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


class BuildWithFiles(build_py):
    "Copies them below `_files`, laid out as in the checkout; an editable install needs no copies."

    def run(self):
        super().run()
        if self.editable_mode: return
        target = Path(self.build_lib) / "amcl_suite" / "_files"
        shutil.rmtree(target, ignore_errors=True)          # of an earlier build
        for path in shipped():
            copy = target / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".ipynb":
                text = without_outputs(path.read_text(encoding="utf-8"))
                copy.write_text(text, encoding="utf-8")
            else: shutil.copyfile(path, copy)


setup(cmdclass={"build_py": BuildWithFiles})
