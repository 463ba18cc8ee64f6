"""The documentation as a site: strict links, nothing from other hosts, equations without scripts, nothing too wide."""

import re
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

pytestmark = pytest.mark.slow
pytest.importorskip("mkdocs", reason="no MkDocs: pip install 'customized-grpo[docs]'")
ROOT = Path(__file__).parents[1]
PAGES = ("", *(f"{page.stem}/" for page in sorted(ROOT.glob("docs/*.md"))))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


def test_every_page_is_built_and_in_the_navigation(site: Path):
    start = (site / "index.html").read_text(encoding="utf-8")
    for page in ROOT.glob("docs/*.md"):
        assert (site / page.stem / "index.html").is_file()
        assert f'href="{page.stem}/"' in start, page


def test_links_to_anchors_and_files_lead_somewhere(site: Path):
    """MkDocs checks those that Markdown has; these are all of them, also of the hook's pages."""
    pages = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html") if page.name != "404.html"}
    assert len(pages) > 40
    for page, text in pages.items():
        for link in re.findall(r'(?:href|src)="([^"]+)"', text):
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), (page, link)
            ids = pages.get(target, "") if anchor else ""
            assert not anchor or f'id="{anchor}"' in ids or anchor == "__tabbed", (page, link)


def test_equations_are_mathml(site: Path):
    text = (site / "method" / "index.html").read_text(encoding="utf-8")
    equations = re.findall(r"<math.*?</math>", text, re.DOTALL)
    assert len(equations) == (ROOT / "docs" / "method.md").read_text(encoding="utf-8").count("```math")
    assert not any("\\" in equation for equation in equations)  # a command that was not understood


def test_pages_ask_no_other_host_and_fit_the_screen(site: Path, browser: Any):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(site)))
    Thread(target=server.serve_forever, daemon=True).start()
    own = f"http://127.0.0.1:{server.server_port}/"
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    for name in PAGES:
        page.set_viewport_size({"width": 1400, "height": 900})
        page.goto(own + name)
        for width in (1400, 400):
            page.set_viewport_size({"width": width, "height": 900})
            too_wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert too_wide <= 0, (name, width)
    context.close()
    server.shutdown()
    assert len(requests) > len(PAGES)
    assert [url for url in requests if not url.startswith((own, "data:", "blob:"))] == []


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *_: Any) -> None: ...
