"""The service's own page in a browser: send, wait, look, correct, delete."""

from __future__ import annotations

import json
import re
import threading

import pytest

pytest.importorskip("python_multipart", reason="needs the extra serve")
import uvicorn

from feature_service.serving.app import create_app
from tests.support.browser import until
from tests.support.service import LocalBackend, config, left

pytestmark = pytest.mark.browser


@pytest.fixture
def service(tmp_path):
    """The address of a service of the real models, for everybody on this machine."""
    settings = config(tmp_path, tokens=False)
    app = create_app(settings, LocalBackend(settings))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.05)
    (socket,) = server.servers[0].sockets
    yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize("width", [360, 1440])
def test_from_a_file_to_a_correction(browser, service, media, tmp_path, width):
    context = browser.new_context(viewport={"width": width, "height": 800}, locale="en-US")
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    page.goto(service)
    page.wait_for_selector("#model option", state="attached", timeout=60_000)
    narrow = "() => document.documentElement.scrollWidth <= innerWidth"
    assert page.evaluate(narrow)
    page.set_input_files("#file", media / "single_face.mp4")
    page.check("[type=checkbox]")
    page.click("#predict")
    page.wait_for_selector("#jobs a", timeout=120_000)
    page.click("#language")
    assert "情绪" in page.inner_text("h1")
    assert page.evaluate(narrow)
    page.click("#jobs a")

    # The recording's own page, served: it plays, seeks by Range, and keeps what is said.
    until(page, "document.querySelector('video').readyState > 1")
    page.keyboard.press("ArrowRight")
    until(page, "document.querySelector('video').currentTime > 1")
    page.keyboard.press("ArrowLeft")
    until(page, "document.querySelector('#lines [aria-current]') !== null")
    select = page.locator("#heads [data-head=vision]")
    select.select_option(index=2)
    until(page, "document.querySelector('#kept').textContent === 'kept'")
    page.reload()
    until(page, "document.querySelector('#lines').textContent.includes('✎')")
    assert page.evaluate(narrow)

    page.goto(service)
    page.wait_for_selector("#corrections button")
    (row,) = page.locator("#corrections li").all()
    assert re.search(r"\b1 lines, the last 20\d\d-", row.inner_text())
    page.click("#jobs button")
    page.wait_for_selector("#none:visible")
    (lines,) = (tmp_path / "service").rglob("*.corrections.jsonl")
    told = json.loads(lines.read_text())
    assert (told["head"], told["who"], told["seen"]) == ("vision", "anyone", True)
    page.click("#corrections button")
    page.wait_for_selector("#corrected", state="hidden")
    assert left(tmp_path) == []
    context.close()
    assert not wrong
