"""Every chapter has the form that CONTRIBUTING promises: a reader who knows one chapter knows all."""

import ast
import json
import re
import statistics
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml
from fuzz import bounds_of

from helpers.claims import load_claims
from helpers.parameters import schema
from helpers.paths import notebooks_of
from helpers.request import load_presets, resolve
from helpers.verify import load_expected

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = [path for folder in sorted((ROOT / "notebooks").glob("*/")) for path in notebooks_of(folder)]
UNCALIBRATED = yaml.safe_load((ROOT / "tests" / "quarantine.yaml").read_text())["uncalibrated"] or {}
SECTIONS = [
    "In one page",
    "Parameters",
    "The method",
    "The data",
    "The experiment",
    "Claims",
    "What would make it fail",
    "Deviations",
    "Exercises",
    "Run card",
]
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
SETUP = re.compile(
    r"import subprocess\nimport sys\n"
    r"from importlib\.util import find_spec\n\n"
    r'if find_spec\("helpers"\) is None:  # .*\n'
    r'    pip = \[sys\.executable, "-m", "pip", "install", "--quiet"\]\n'
    r'    subprocess\.run\(\[\*pip, "git\+(?P<url>[^"]+)"\], check=True\)'
    r'(?P<data>(?:\n    data_only = \[[^\]]+\])?\n    subprocess\.run\(\[\*pip, "--no-deps", [^\]]+\], check=True\))?'
)
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|mnt|Users)/")


@pytest.fixture(params=NOTEBOOKS, ids=[f"{path.parent.name}-{path.stem}" for path in NOTEBOOKS])
def path(request) -> Path:
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


@pytest.fixture
def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def section(notebook, title: str) -> list:
    """The cells of one section; the heading stands at the start of a markdown cell."""
    inside, found = False, []
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (heads := re.findall(r"^## (.+)$", cell.source, re.MULTILINE)):
            inside = heads[-1].strip() == title
        if inside:
            found.append(cell)
    return found


def code_lines(source: str) -> int:
    """Lines of code: without blank lines, lines that are all comment, and docstrings."""
    spans = [
        range(node.body[0].lineno, node.body[0].end_lineno + 1)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node)
    ]
    docstrings = {number for span in spans for number in span}
    lines = enumerate(source.splitlines(), start=1)
    return sum(1 for number, line in lines if line.split("#")[0].strip() and number not in docstrings)


def test_there_is_a_chapter():
    assert NOTEBOOKS


def test_is_valid_and_without_outputs(path, code):
    nbformat.validate(json.loads(path.read_text()))
    full = [cell.id for cell in code if cell.outputs or cell.execution_count is not None]
    assert not full, f"outputs or counts in {full}"


def test_has_full_kernelspec(notebook):
    assert dict(notebook.metadata.kernelspec) == KERNEL
    assert notebook.metadata.language_info["name"] == "python"


def test_cell_ids_are_unique_and_stable(path):
    ids = [cell.get("id", "") for cell in json.loads(path.read_text())["cells"]]
    assert len(ids) == len(set(ids))
    random = [name for name in ids if not re.fullmatch(r"[a-z][\w-]*", name) or re.fullmatch(r"[0-9a-f-]{8,}", name)]
    assert not random, f"ids must be words: {random}"
    counted = [name for name in ids if re.search(r"-(\w|\d+|why|code|text|next|more)$", name)]
    assert not counted, f"ids must name their content: {counted}"


def test_code_is_plain_python(code):
    for cell in code:
        ast.parse(cell.source)  # no magics, no shell


def test_title_and_sections_stand_in_order(notebook):
    assert re.match(r"# \S", notebook.cells[0].source)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    text = re.sub(r"(?ms)^(```|~~~).*?^\1", "", text)
    assert len(re.findall(r"(?m)^# \S", text)) == 1
    assert [head.strip() for head in re.findall(r"(?m)^## (.+)$", text)] == SECTIONS


def test_first_cells_are_setup_imports_parameters_run(path, code):
    first = code[0]
    assert first.id == "setup" and {"setup", "hide-cell"} <= set(tags(first))
    match = SETUP.fullmatch(first.source.strip())
    assert match, "the setup cell is not the agreed text"
    assert match["url"] == yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    pins = set(re.findall(r'"([^"]+==[^"]+)"', match["data"] or ""))
    locked = set(re.findall(r"(?m)^([\w.-]+==\S+)", (ROOT / "requirements-models.lock").read_text()))
    assert pins <= locked, f"not in requirements-models.lock: {pins - locked}"
    assert code[1].id == "imports"
    assert "parameters" in tags(code[2])
    study = "" if path.stem == path.parent.name else f', notebook="{path.stem}"'
    assert code[3].source.startswith(f'run = Run("{path.parent.name}", globals(){study})')


def test_parameters_are_documented_and_bounded(path):
    model = schema(path)
    known = papermill.inspect_notebook(path)
    for name, (kind, limits) in bounds_of(model).items():
        assert model.model_fields[name].description, f"{name} has no comment"
        bounded = kind in (str, bool, list) or limits.low is not None or limits.choices
        assert bounded, f"{name}: a number needs its range [low, high] or its choices {{a, b}}"
        assert known[name]["help"], f"{name}: papermill cannot read it (a second '=' in its line?)"


def test_presets_and_claims_are_valid(path):
    presets = load_presets(path)
    assert [name for name in presets.values if name != "gpu"] == ["reduced", "public", "full"]
    assert set(presets.values["reduced"]) <= {"preset"}, "the parameters cell's defaults are the reduced preset"
    assert presets.budgets["reduced"].wall_s <= 480 and presets.budgets["reduced"].memory_gb <= 4
    sources = yaml.safe_load((path.parent / "presets.yaml").read_text()).get("sources", {}).get("full", {})
    unsourced = presets.values["full"].keys() - sources.keys() - {"preset"}
    assert not unsourced, f"presets.yaml: full: no source for {sorted(unsourced)}"
    assert load_claims(path.parent / "claims.yaml", path.stem), "no claim is judged by this notebook"
    excused = f"{path.parent.name}/{path.stem}" in UNCALIBRATED
    assert bool(load_expected(path.parent, path.stem)) != excused, "never calibrated, or excused without need"


def test_the_reduced_preset_is_the_one_that_was_calibrated(path):
    # executed by hand or by nbmake, a page whose parameters have changed is not refused: its gate is silent
    assert resolve(path, "reduced", 0).changed == {}


def test_chapter_has_one_to_three_headlines_and_its_claims_have_notebooks(path):
    claims = load_claims(path.parent / "claims.yaml").values()
    assert 1 <= sum(claim.headline is not None for claim in claims) <= 3
    known = {notebook.stem for notebook in notebooks_of(path.parent)}
    assert {claim.notebook or path.parent.name for claim in claims} == known


def test_notebook_is_short_enough_to_review(path, code):
    lines = sum(1 for cell in code for line in cell.source.splitlines() if line.strip())
    assert len(code) <= 120 and lines <= 850, f"{path.stem}: {len(code)} code cells, {lines} code lines"


def test_cells_are_short(code):
    lengths = {cell.id: len(cell.source.splitlines()) for cell in code}
    longest = max(lengths, key=lengths.get)
    assert lengths[longest] <= 40, f"cell {longest} has {lengths[longest]} lines"
    counts = sorted(code_lines(cell.source) for cell in code)
    assert statistics.median(counts) <= 8, f"the median cell has {statistics.median(counts):g} lines of code: {counts}"


def test_prose_and_code_are_in_balance(notebook, code):
    words = sum(len(re.findall(r"\w+", c.source)) for c in notebook.cells if c.cell_type == "markdown")
    lines = sum(code_lines(cell.source) for cell in code)
    assert 5 <= words / lines <= 14, f"{words} words to {lines} lines: {words / lines:.1f} words a line"


def test_definitions_have_docstrings(code):
    bare = [
        node.name
        for cell in code
        for node in ast.parse(cell.source).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not ast.get_docstring(node)
        if not node.name.startswith("draw")  # drawn figures carry an alt text
    ]
    assert not bare, f"no docstring: {bare}"


def test_randomness_comes_from_the_run(code):
    drawing = "seed|rand|randn|randint|random|normal|uniform|choice|permutation|shuffle"
    shared = re.compile(rf"np\.random\.({drawing})\b|(?<![\w.])random\.\w+\(|torch\.manual_seed")
    found = [cell.id for cell in code if shared.search(cell.source) and "fork_rng" not in cell.source]
    assert not found, f"global random state in {found}; use run.rng"


def test_exercises_have_folded_and_executed_answers(notebook):
    cells = section(notebook, "Exercises")
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    folded = len(re.findall(r":class:.*\bdropdown\b", prose))
    executed = [cell for cell in cells if cell.cell_type == "code" and "hide-cell" in tags(cell)]
    assert folded >= 3 and len(executed) >= 3, f"{folded} folded answers, {len(executed)} executed answers"


def test_last_code_cell_finishes_the_run(code):
    said = [ast.unparse(statement) for statement in ast.parse(code[-1].source).body]
    cleared = said[-1].startswith("shutil.rmtree")  # kept work goes once the record is whole
    assert "run.finish()" in "".join(said[-2:-1] if cleared else said[-1:])


def test_no_machine_paths(path):
    for file in [path, *path.parent.glob("*.yaml")]:
        assert not MACHINE_PATH.search(file.read_text()), f"{file.name} names a path of one machine"
