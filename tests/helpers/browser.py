"""Pages as a person sees them: a real headless Chromium, and TensorBoard's real server."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from tests.helpers.processes import free_port

ALL_TEXT = """
const text = n => n.nodeType === 3 ? n.textContent + ' ' :
    ['STYLE', 'SCRIPT'].includes(n.nodeName) ? '' :
    (n.shadowRoot ? text(n.shadowRoot) : '') + [...n.childNodes].map(text).join('');
return text(document.body)"""


@contextlib.contextmanager
def tensorboard(logdir: Path, strict: bool = False) -> Iterator[str]:
    """A server of `logdir` on this machine; gives its address.

    strict: it may write no error; not with a browser, which may close before it is answered
    """
    port = free_port()
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
    seen: list[str] = []
    try:
        assert server.stderr
        for line in server.stderr:
            seen.append(line)
            if "Press CTRL+C" in line:
                break
        assert "Press CTRL+C" in "".join(seen)
        yield f"http://localhost:{port}"
    finally:
        server.terminate()
        seen.append(server.communicate()[1])
    if strict:
        text = "".join(seen)
        assert not re.search("error|traceback|corrupt", text, re.IGNORECASE), text


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
    with tempfile.TemporaryDirectory() as folder:  # the browser leaves files where it ends
        service = Service(driver, env={**os.environ, "TMPDIR": folder})
        with webdriver.Chrome(options=options, service=service) as page:
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


# What a page lacks for readers with other eyes, as a list of lines; run in the page.
FAULTS = """
const faults = [], seen = new Set();
const add = (what, node) => {
    const line = what + ': ' + node.outerHTML.slice(0, 90);
    if (!seen.has(what + node.className)) { seen.add(what + node.className); faults.push(line); }
};
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const rgba = color => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
};
const behind = node => {
    const layers = [];
    for (let n = node; n; n = n.parentElement) {
        const layer = rgba(getComputedStyle(n).backgroundColor);
        layers.unshift(layer);
        if (layer[3] === 1) break;
    }
    return layers.reduce((below, c) => below.map((v, i) => v * (1 - c[3]) + c[i] * c[3]),
        [255, 255, 255]);
};
const light = color => {
    const [r, g, b] = color.map(v => v / 255).map(
        v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
};
if (!document.documentElement.lang) faults.push('no language');
if (!document.title) faults.push('no title');
if (document.querySelectorAll('h1').length !== 1) faults.push('not one h1');
if (!document.querySelector('main')) faults.push('no main');
let level = 1;
for (const h of document.querySelectorAll('h1, h2, h3, h4')) {
    if (Number(h.tagName[1]) > level + 1) add('skipped a level', h);
    level = Number(h.tagName[1]);
}
for (const img of document.images) if (!img.alt) add('picture without text', img);
for (const th of document.querySelectorAll('th')) if (!th.scope) add('heading without scope', th);
for (const link of document.querySelectorAll('a, button, [role=region]'))
    if (!(link.getAttribute('aria-label') || link.textContent).trim()) add('no name', link);
for (const a of document.querySelectorAll('a[href^="#"]'))
    if (!document.getElementById(a.getAttribute('href').slice(1))) add('leads nowhere', a);
const ids = [...document.querySelectorAll('[id]')].map(node => node.id);
for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) faults.push('id twice: ' + id);
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let node; node = walker.nextNode();) {
    const parent = node.parentElement;
    if (!node.textContent.trim() || !parent.checkVisibility()) continue;
    if (['SCRIPT', 'STYLE'].includes(parent.tagName)) continue;
    const style = getComputedStyle(parent), back = behind(parent), ink = rgba(style.color);
    const [a, b] = [light(ink.slice(0, 3)), light(back)].sort((x, y) => y - x);
    const large = parseFloat(style.fontSize) >= 24
        || parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700;
    const ratio = (a + .05) / (b + .05);
    if (ratio < (large ? 3 : 4.5)) add('contrast ' + ratio.toFixed(2), parent);
}
return faults;
"""


def faults(page: webdriver.Chrome, scheme: str = "light") -> list[str]:
    """What the open page lacks: contrast of text, names, alternative texts, scopes, order."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    page.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    return list(page.execute_script(FAULTS))
