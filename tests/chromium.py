"""Pages in a real browser: the system's Chromium, or Playwright's own if it is installed."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def chromium() -> Iterator[Any]:
    """A running browser. Skips the test if there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install 'customized-grpo[browser]'")
    with api.sync_playwright() as playwright:
        program = next((path for name in NAMES if (path := shutil.which(name))), playwright.chromium.executable_path)
        if not Path(program).exists():
            pytest.skip("no Chromium here: apt-get install chromium, or playwright install chromium")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])  # root in a container
        yield browser
        browser.close()


class Opened:
    """A page, all requests that it made, and all errors and messages that it raised."""

    def __init__(self, browser: Any, url: str, width: int = 1400, scheme: str = "light"):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.goto(url)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.context.close()
