"""What MkDocs does with the pages beyond its own: every page is written for GitHub, and the site follows.

- README.md is the start page; CONTRIBUTING.md, SECURITY.md and so on are pages, too.
- A link to another file of the repository leads to a page that shows it; one to a folder lists its files.
- A code block with the language `math` becomes MathML, which browsers show without a script.

A link that leads nowhere stays as it is: the strict build refuses it.
"""

import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
SHOWN = "repository"  # the folder of the site with the files that pages link to
CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[)#])")


def on_config(config: Any) -> Any:
    fence = {"name": "math", "class": "math", "format": _mathml}
    config["mdx_configs"].setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that stand outside of docs/, and those of the files and folders that pages link to."""
    waiting = [ROOT / "README.md", *(file.abs_src_path for file in files.documentation_pages())]
    seen: set[Path] = set()
    while waiting:
        page = Path(str(waiting.pop()))
        for target in _links(page):
            name = site_name(target)
            if target in seen or files.get_file_from_path(name):
                continue
            seen.add(target)
            files.append(File.generated(config, name, content=_content(target)))
            if target.suffix == ".md":
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The links of a page as they are in the site."""
    here = _source(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        target = _target(here, match[1])
        if target is None:
            return match[1]
        name = target.relative_to(ROOT / "docs").as_posix() if _is_asset(target) else site_name(target)
        return os.path.relpath(name, PurePosixPath(page.file.src_uri).parent)

    return _outside_code(markdown, lambda text: LINK.sub(moved, text))


def site_name(target: Path) -> str:
    """Where a file or folder of the repository stands in the site, from the root of docs/."""
    path = target.relative_to(ROOT).as_posix()
    if target.suffix == ".md":
        path = "index.md" if path == "README.md" else path
        return path.removeprefix("docs/") if "/" in path else path.lower()
    return f"{SHOWN}/{path}/index.md" if target.is_dir() else f"{SHOWN}/{path}.md"


def _source(name: str) -> Path:
    """The file of the repository that a page of the site is made from."""
    if name.startswith(f"{SHOWN}/"):
        return ROOT / name.removeprefix(f"{SHOWN}/").removesuffix(".md")
    if (ROOT / "docs" / name).is_file():
        return ROOT / "docs" / name
    return next((file for file in ROOT.glob("*.md") if site_name(file) == name), ROOT / "docs" / name)


def _links(page: Path) -> list[Path]:
    """The files and folders that a page links to and that no page or picture of docs/ is."""
    text = "".join(CODE.split(page.read_text(encoding="utf-8"))[::2])
    found = (_target(page, link) for link in LINK.findall(text))
    own = [page] if page.parent == ROOT else []
    return own + [target for target in found if target is not None and not _is_asset(target)]


def _target(page: Path, link: str) -> Path | None:
    """The file of the repository that a link leads to, if it is one."""
    target = Path(os.path.normpath(page.parent / link))
    return target if ":" not in link and target.is_relative_to(ROOT) and target.exists() else None


def _is_asset(target: Path) -> bool:
    """Whether the site has it as it is: a picture."""
    return target.is_relative_to(ROOT / "docs") and target.suffix in {".png", ".svg"}


def _content(target: Path) -> str:
    if target.suffix == ".md":
        return target.read_text(encoding="utf-8")
    name = target.relative_to(ROOT).as_posix()
    if target.is_dir():
        files = sorted(file.relative_to(target).as_posix() for file in target.rglob("*") if _is_shown(file))
        listed = "\n".join(files)
        return _shown(name, f"This folder of the repository holds {len(files)} files:\n\n```\n{listed}\n```")
    if target.suffix == ".ipynb":
        return _shown(name, _notebook(target))
    language = {".py": "python", ".yaml": "yaml", ".json": "json"}.get(target.suffix, "")
    return _shown(name, f"````{language}\n{target.read_text(encoding='utf-8')}\n````")


def _notebook(target: Path) -> str:
    """Text and code of a notebook, without its results."""
    cells = json.loads(target.read_text(encoding="utf-8"))["cells"]
    texts = ((cell["cell_type"], "".join(cell["source"])) for cell in cells)
    return "\n\n".join(f"````python\n{text}\n````" if kind == "code" else text for kind, text in texts)


def _is_shown(file: Path) -> bool:
    return file.is_file() and "__pycache__" not in file.parts


def _shown(name: str, content: str) -> str:
    return f"---\nsearch: {{exclude: true}}\nhide: [navigation]\n---\n# {name}\n\n{content}\n"


def _outside_code(markdown: str, change: Any) -> str:
    parts = CODE.split(markdown)
    return "".join(part if number % 2 else change(part) for number, part in enumerate(parts))


def _mathml(source: str, *_: Any, **__: Any) -> str:
    return convert(source, display="block")
