"""TensorBoard as a person sees it: the real server and a real headless Chromium."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

ALL_TEXT = """
const text = n => n.nodeType === 3 ? n.textContent + ' ' :
    ['STYLE', 'SCRIPT'].includes(n.nodeName) ? '' :
    (n.shadowRoot ? text(n.shadowRoot) : '') + [...n.childNodes].map(text).join('');
return text(document.body)"""


@contextlib.contextmanager
def tensorboard(logdir: Path) -> Iterator[str]:
    """A server of `logdir` on this machine; gives its address."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    call = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        logdir,
        "--host",
        "localhost",
        "--port",
        port,
    ]
    server = subprocess.Popen([*map(str, call)], stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr
        assert any("Press CTRL+C" in line for line in server.stderr)
        yield f"http://localhost:{port}"
    finally:
        server.terminate()
        server.communicate()


@contextlib.contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """A headless Chromium; the test is skipped where there is none."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("no chromium or chromedriver here")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1500,900",
    ):
        options.add_argument(flag)
    with webdriver.Chrome(options=options, service=Service(driver)) as page:
        yield page


def page_text(address: str, wanted: str, picture: Path, seconds: float = 60) -> str:
    """All text of a page, shadow trees included, once `wanted` is in it; `picture` shows it."""
    with chromium() as page:
        page.get(address)
        deadline, text = time.monotonic() + seconds, ""
        while wanted not in text and time.monotonic() < deadline:
            time.sleep(0.5)
            text = " ".join(page.execute_script(ALL_TEXT).split())
        page.save_screenshot(str(picture))
    return text


def set_screen(page: webdriver.Chrome, width: int, height: int) -> None:
    """Give the browser a screen of that size; a phone's below 600 pixels."""
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)


def scroll_width(file: Path, width: int) -> int:
    """Width of a page, in pixels, on a screen of `width`."""
    with chromium() as page:
        set_screen(page, width, 844)
        page.get(file.as_uri())
        return int(page.execute_script("return document.documentElement.scrollWidth"))
