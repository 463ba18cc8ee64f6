"""Serves the page on the loopback interface until a signal; it neither answers nor asks other machines."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from customized_grpo.commands.options import chosen_device
from customized_grpo.errors import UsageError
from customized_grpo.runtime.stopping import StopRequest

if TYPE_CHECKING:
    from customized_grpo.studio.page import Page

HOST = "127.0.0.1"
PORTS = range(7860, 7960)
FONTS = ("system-ui", "Segoe UI", "Roboto", "Inter", "Helvetica Neue", "Arial", "sans-serif")  # as in the report
LARGEST_UPLOAD = "100mb"
# The browser itself refuses anything that is not from this server. Gradio compiles its templates, hence unsafe-eval.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; frame-ancestors 'none'"
)


def serve(folders: Sequence[Path], *, port: int | None, browser: bool, device: str | None) -> None:
    """Show these runs until SIGINT or SIGTERM. Uploaded files are removed then.

    port  None: the first free one of `PORTS`

    Raises UsageError if Gradio is missing or the port is taken, and what `open_folders` raises.
    """
    if find_spec("gradio") is None:
        raise UsageError('studio: gradio is not installed; pip install "customized-grpo[studio]"')
    port = free_port(port)
    # What follows takes seconds to import.
    from customized_grpo.studio.generating import Studio
    from customized_grpo.studio.opened import open_folders
    from customized_grpo.studio.page import Page

    opened, line = open_folders(folders)
    with tempfile.TemporaryDirectory(prefix="customized-grpo-studio-") as uploads, StopRequest("the studio") as stop:
        page = Page({each.name: each for each in opened}, line, Studio(chosen_device(device)))
        blocks = _started(page, port, browser, uploads)
        print(f"studio: {blocks.local_url} shows {line}; Ctrl-C stops it", flush=True)
        while not stop.requested:
            time.sleep(0.1)
        blocks.close(verbose=False)
    stop.exit("the studio is closed, and uploaded pictures are removed")


def _started(page: Page, port: int, browser: bool, uploads: str) -> Any:
    """The page, being served in the background."""
    os.environ["GRADIO_TEMP_DIR"] = uploads  # read when Gradio is imported
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["NO_PROXY"] = ",".join(filter(None, [os.environ.get("NO_PROXY"), HOST]))  # Gradio asks its own server
    gr: Any = import_module("gradio")
    from customized_grpo.studio.markup import head
    from customized_grpo.studio.page import build

    blocks = build(page)
    blocks.launch(
        server_name=HOST,
        server_port=port,
        inbrowser=browser,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        theme=_theme(gr),
        head=head(),
        footer_links=[],
        max_file_size=LARGEST_UPLOAD,
        app_kwargs={"middleware": _middleware(), "docs_url": None, "redoc_url": None},
        **dict.fromkeys(("run_history", "enable_monitoring", "ssr_mode", "pwa", "mcp_server"), False),
    )
    return blocks


def free_port(wanted: int | None) -> int:
    """The wanted port, or the first free one of `PORTS`. Raises UsageError if there is none."""
    reason = None
    for port in PORTS if wanted is None else (wanted,):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: one just closed is free
            try:
                probe.bind((HOST, port))
            except OSError as error:
                reason = error.strerror
                continue
            return port
    which = f"{PORTS.start} to {PORTS.stop - 1}" if wanted is None else wanted
    raise UsageError(f"--port: no free port on {HOST} ({which}: {reason}); choose another one")


def _middleware() -> list[Any]:
    """Answers only requests to this machine by name, and tells the browser to ask nobody else."""
    middleware: Any = import_module("starlette.middleware")
    hosts: Any = import_module("starlette.middleware.trustedhost")
    return [
        # A page from elsewhere can make its own name point to this machine, but not call itself localhost.
        middleware.Middleware(hosts.TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"]),
        middleware.Middleware(_WithPolicy),
    ]


class _WithPolicy:
    """Adds the content security policy to every answer."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def _theme(gr: Any) -> Any:
    """The report's colours and type; its style sheet has both values of every colour."""
    theme = gr.themes.Base(font=list(FONTS), font_mono=["ui-monospace", "monospace"], radius_size="lg")
    colours = {
        "body_background_fill": "var(--paper)",
        "body_text_color": "var(--ink)",
        "body_text_color_subdued": "var(--soft)",
        "background_fill_primary": "var(--card)",
        "background_fill_secondary": "var(--card)",
        "block_background_fill": "var(--card)",
        "block_border_color": "var(--hair)",
        "block_label_background_fill": "var(--card)",
        "block_label_text_color": "var(--soft)",
        "block_title_text_color": "var(--soft)",
        "border_color_primary": "var(--hair)",
        "border_color_accent": "var(--accent)",
        "color_accent_soft": "var(--card)",
        "input_background_fill": "var(--card)",
        "input_border_color": "var(--hair)",
        "input_border_color_focus": "var(--accent)",
        "button_primary_background_fill": "var(--ink)",
        "button_primary_background_fill_hover": "var(--accent)",
        "button_primary_text_color": "var(--paper)",
        "link_text_color": "var(--accent)",
    }
    both = {name: value for key, value in colours.items() for name in (key, f"{key}_dark")}
    return theme.set(block_shadow="none", **both)
