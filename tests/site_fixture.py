"""One build of the whole site for all tests, with a page of media that the project lacks so far.

It takes 20 s, so it is made once for a run of pytest, on first use, and removed at its end."""
import atexit, base64, functools, io, json, math, shutil, struct, tempfile, wave
from pathlib import Path

from amcl_suite.reproduce import code, docs, site

ROOT = Path(__file__).resolve().parents[1]
WATCHES = ("nbs", "amcl_suite", "_quarto.yml")     # for scripts/test.sh --changed
BESIDE = ("index.ipynb", "references.bib", "styles.css", "icon.svg", "theme.scss", "_quarto.yml")
CHAPTERS = [path.relative_to(ROOT / "nbs").as_posix() for path in code.notebooks(ROOT)]
MEDIA = "90_results/99_media.ipynb"


def copy_project(folder: Path, chapters) -> Path:
    "Copy what the site needs, with some chapters only."
    for name in ("settings.ini", "pyproject.toml", "_quarto.yml"): shutil.copy(ROOT / name, folder)
    quiet = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "amcl_suite", folder / "amcl_suite", ignore=quiet)
    shutil.copytree(ROOT / "nbs" / "_frame", folder / "nbs" / "_frame")
    for name in (*BESIDE, *chapters):
        (folder / "nbs" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "nbs" / name, folder / "nbs" / name)
    return folder


def markdown(text: str) -> dict: return dict(cell_type="markdown", metadata={}, source=text)


def output(source: str, **forms: str) -> dict:
    "A code cell with one stored output; forms are given as `image_png=...`."
    data = {form.replace("_", "/", 1): content for form, content in forms.items()}
    stored = dict(output_type="display_data", metadata={}, data=data)
    return dict(cell_type="code", metadata={}, source=source, outputs=[stored],
                execution_count=None)


def write_notebook(path: Path, cells: list[dict]):
    "Write a notebook with the given cells."
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [cell | {"id": f"cell{number}"} for number, cell in enumerate(cells)]
    path.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))


def tone(seconds: float = 0.5, rate: int = 8000) -> bytes:
    "A WAV file with a quiet 440 Hz tone."
    wave_at = lambda i: int(3000 * math.sin(2 * math.pi * 440 * i / rate))
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        for i in range(int(seconds * rate)): file.writeframes(struct.pack("<h", wave_at(i)))
    return buffer.getvalue()


def animation() -> bytes:
    "A GIF of two frames."
    from PIL import Image
    frames, buffer = [Image.new("P", (40, 30), colour) for colour in (0, 255)], io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=100)
    return buffer.getvalue()


def write_media_page(root: Path):
    "Add a page with a player as IPython makes it, an animation and a drawing."
    from IPython.display import Audio
    drawing = '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30"><circle r="9"/></svg>'
    moving = base64.b64encode(animation()).decode()
    figure = '#| label: fig-media-gif\n#| fig-cap: "It moves."\n#| fig-alt: "Two frames"\nshow()'
    cells = [markdown("# Media\n> A tone, an animation and a drawing"),
             markdown("See @fig-media-gif."),
             output("player()", text_html=Audio(data=tone())._repr_html_()),
             output(figure, image_gif=moving),
             output('#| fig-alt: "A disc"\ndraw()', **{"image_svg+xml": drawing})]
    write_notebook(root / "nbs" / MEDIA, cells)
    settings = (root / "_quarto.yml").read_text().rstrip("\n")
    more = settings.replace("- api.ipynb", f"- api.ipynb\n          - {MEDIA}")
    (root / "_quarto.yml").write_text(more)


@functools.cache
def whole_site() -> tuple[Path, list[tuple[str, str]]]:
    "Return the folder of the built site and the faults that were found."
    folder = Path(tempfile.mkdtemp(prefix="amcl-site-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_media_page(copy_project(folder, CHAPTERS))
    faults = site.build(folder, say=lambda line: None)
    return folder / "_docs", faults
