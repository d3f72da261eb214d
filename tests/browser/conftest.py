"""A real browser: Debian's Chromium, driven by Playwright. What is not here skips the tests."""

from __future__ import annotations

import shutil

import pytest

APT = "apt-get install -y chromium fonts-noto-cjk"


@pytest.fixture(scope="session")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[browser]'")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip(f"no chromium: {APT}")
    with api.sync_playwright() as playwright:
        # As root, which containers are, Chromium's sandbox does not start.
        yield playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


@pytest.fixture
def show(browser):
    """`show(path, width=1440, ...)` opens a page from the disk, of which `context` are options of
    a browser's context. What it asks of a network, throws or breaks of its policy fails the test;
    that its recording is gone does not."""
    contexts, wrong = [], []

    def said(message):
        if message.type == "error" and "ERR_FILE_NOT_FOUND" not in message.text:
            wrong.append(message.text)

    def opened(path, *, width=1440, **context):
        size = {"width": width, "height": 800}
        contexts.append(browser.new_context(viewport=size, **{"locale": "en-US", **context}))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", said)
        page.on("request", lambda r: wrong.append(r.url) if r.url.startswith("http") else None)
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not wrong
