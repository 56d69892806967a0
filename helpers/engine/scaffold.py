"""Begin a chapter: `papers new <paper>` copies a small one that passes every test, to be replaced step by step."""

import keyword
import re
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from helpers.parameters import BadRequestError
from helpers.paths import checkout, read_yaml, write_atomically

TEMPLATES = Path(__file__).resolve().parent / "templates"
STAND_IN = "new_paper"  # the template's name in its files; REPOSITORY_URL stands for the address in _config.yml
NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
NEXT = """{paper}: a chapter that runs, to be replaced step by step:
  {files}
Try it:   papers run {paper}
Then follow CONTRIBUTING.md: claims first, then the notebook from the top, then papers calibrate {paper}"""


def new_chapter(paper: str) -> list[Path]:
    """Write a chapter, its tests and its entry in `_toc.yml`; all of it or nothing.

    Returns:
        What was written, relative to the checkout.

    Raises:
        BadRequestError: a bad name, something of that name is there, or this is not a checkout.
    """
    root = checkout()
    if root is None:
        raise BadRequestError("a new chapter needs a checkout of the book; this is an installed package")
    if not NAME.fullmatch(paper) or keyword.iskeyword(paper) or len(paper) > 40:
        raise BadRequestError(
            f"'{paper}' is no name for a chapter: lower-case words joined by '_', at most 40 characters"
        )
    folder, test, toc = root / "notebooks" / paper, root / "tests" / "chapters" / f"test_{paper}.py", root / "_toc.yml"
    if there := [path for path in (folder, test) if path.exists()]:
        raise BadRequestError(f"{there[0].relative_to(root)} is there already")
    contents = with_entry(toc.read_text(encoding="utf-8"), paper)
    url = read_yaml(root / "_config.yml")["repository"]["url"]

    def text(template: Path) -> str:
        return template.read_text(encoding="utf-8").replace(STAND_IN, paper).replace("REPOSITORY_URL", url)

    with tempfile.TemporaryDirectory(dir=root, prefix=".new-") as work:
        draft = Path(work, paper)
        for template in sorted((TEMPLATES / STAND_IN).iterdir()):
            write_atomically(draft / template.name.replace(STAND_IN, paper), text(template))
        try:
            draft.rename(folder)
            write_atomically(test, text(TEMPLATES / f"test_{STAND_IN}.py"))
            write_atomically(toc, contents)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            test.unlink(missing_ok=True)
            raise
    return [path.relative_to(root) for path in (*sorted(folder.iterdir()), test, toc)]


def with_entry(contents: str, paper: str) -> str:
    """Return the text of `_toc.yml` with the chapter as the last of its part, unless it is listed; comments stay.

    Raises:
        BadRequestError: there is no part with the caption "Chapters".
    """
    part = re.search(r"(?ms)^ *- caption: *Chapters *$.*?(?=\s*(^ *- caption:|\Z))", contents)
    if part is None:
        raise BadRequestError("_toc.yml: no part has the caption 'Chapters'")
    entry = f"- file: notebooks/{paper}/{paper}"
    if entry in map(str.strip, contents.splitlines()):
        return contents
    return f"{contents[: part.end()]}\n      {entry}{contents[part.end() :]}"


def new_command(
    paper: Annotated[str, typer.Argument(help="name of the chapter, for example ridge_regression")],
) -> None:
    """Begin a chapter with a small one that runs. Exit code 2: refused, and nothing was written."""
    try:
        written = new_chapter(paper)
    except (BadRequestError, OSError) as error:
        typer.echo(f"refused: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(NEXT.format(paper=paper, files="\n  ".join(map(str, written))))
