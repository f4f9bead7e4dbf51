"""A headless Chromium, and what a test does with the page."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = (
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    # Else it has no address at all to receive at where there is no network.
    "--allow-loopback-in-peer-connection",
)
DESKTOP, PHONE = (1280, 800), (390, 844)


def chromium() -> str | None:
    """The installed one's path."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def browsing(driver, *more: str) -> Iterator:
    """A browser of a Playwright driver, closed afterwards; more: arguments beside ARGUMENTS."""
    browser = driver.chromium.launch(executable_path=chromium(), args=[*ARGUMENTS, *more])
    try:
        yield browser
    finally:
        browser.close()


@contextmanager
def page_of(
    browser, address: str, size: tuple[int, int] = DESKTOP, scheme: str = "light", scale: float = 1
) -> Iterator:
    """The page in a context of its own; errors of its scripts and refusals of its policy fail the test."""
    viewport = {"width": size[0], "height": size[1]}
    context = browser.new_context(viewport=viewport, color_scheme=scheme, device_scale_factor=scale)
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if "Content Security Policy" in line.text else None)
    try:
        page.goto(address)
        page.wait_for_selector("#faces img, #door:not([hidden])")
        yield page
    finally:
        # Which ends its session, so that the next test finds a place.
        context.close()
    assert not problems, problems


def begin(page) -> None:
    """Presses Start and waits for the picture."""
    page.click("#start")
    page.wait_for_selector("body[data-phase=live]", timeout=30_000)
    page.wait_for_function("() => document.getElementById('video').currentTime > 0.3", timeout=20_000)


def frame(page) -> np.ndarray:
    """What the video shows now, uint8 [H, W, 3], at the size it was sent in."""
    data = page.evaluate(
        """() => {
          const video = document.getElementById('video');
          const canvas = Object.assign(document.createElement('canvas'), {
            width: video.videoWidth, height: video.videoHeight});
          canvas.getContext('2d').drawImage(video, 0, 0);
          return canvas.toDataURL('image/png');
        }"""
    )
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).convert("RGB"))


def frames(page, seconds: float, step: float = 0.15) -> np.ndarray:
    """One every `step` seconds, [n, H, W, 3]."""
    found = []
    for _ in range(round(seconds / step)):
        found.append(frame(page))
        page.wait_for_timeout(1000 * step)
    return np.stack(found)


def loudness(page, seconds: float) -> float:
    """The loudest moment of the sound that the page plays, 0 to 1."""
    return page.evaluate(
        """async (seconds) => {
          const context = new AudioContext();
          await context.resume();
          const meter = context.createAnalyser();
          context.createMediaStreamSource(document.getElementById('video').srcObject).connect(meter);
          const samples = new Float32Array(meter.fftSize);
          let most = 0;
          for (const end = performance.now() + 1000 * seconds; performance.now() < end; ) {
            meter.getFloatTimeDomainData(samples);
            most = Math.max(most, ...samples.map(Math.abs));
            await new Promise((resolve) => setTimeout(resolve, 20));
          }
          await context.close();
          return most;
        }""",
        seconds,
    )
