"""A person's visit, in headless Chromium, to the real server with the shipped student on this machine's CPU.

LIVETALK_SCREENSHOTS names a folder to which pictures of the page are written.
"""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from livetalk.realtime.server.faces import BUNDLED
from tests.realtime.server.browser import DESKTOP, PHONE, begin, browsing, chromium, frame, frames, loudness, page_of

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason="no Chromium is installed: apt-get install chromium"),
]
ROOT = Path(__file__).resolve().parents[3]
SILENT, AUDIBLE = 0.01, 0.05
"""Of the loudest moment."""


@contextmanager
def serving(*settings: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """The command, until the block ends: its address and process."""
    command = [sys.executable, str(ROOT / "scripts" / "serve.py"), *settings]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT)
    try:
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address), address
        yield address, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        process.stdout.close()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving("port=0", "sessions=1") as (found, _):
        yield found


@pytest.fixture(scope="module")
def driver() -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as found:
        yield found


@pytest.fixture(scope="module")
def browser(driver) -> Iterator:
    with browsing(driver) as found:
        yield found


@pytest.fixture(scope="module")
def mouth():
    """Reads how far mouths are open, from frames of any size: [n]."""
    from livetalk.evaluation.judges import load_judges

    judges = load_judges(ROOT / "livetalk" / "assets" / "nano" / "judges")

    def read(pictures: np.ndarray) -> np.ndarray:
        small = [np.asarray(Image.fromarray(picture).resize((128, 128), Image.Resampling.BOX)) for picture in pictures]
        return judges.read(torch.from_numpy(np.stack(small))[None]).tracks["mouth_open"][0].numpy()

    return read


def state(page, name: str, seconds: float = 30) -> None:
    page.wait_for_selector(f"body[data-state={name}]", timeout=1000 * seconds)


def say(page, text: str) -> None:
    page.fill("#text", text)
    page.keyboard.press("Enter")


def leave(page) -> None:
    page.click("#leave")
    page.wait_for_selector("body[data-phase=start]")
    # The server takes a moment until the place is free.
    page.wait_for_timeout(800)


def test_a_conversation(browser, address, mouth):
    with page_of(browser, address) as page:
        begin(page)
        page.wait_for_timeout(1500)
        before = frames(page, 2)
        assert loudness(page, 0.5) < SILENT
        say(page, "Hello! Who are you?")
        state(page, "speaking")
        assert loudness(page, 1.0) > AUDIBLE
        during = frames(page, 2.5)
        state(page, "idle")
        page.wait_for_timeout(1000)
        after = frames(page, 2)
        assert loudness(page, 0.5) < SILENT
        rest, speech, end = mouth(before), mouth(during), mouth(after)
        assert speech.max() > 2 * max(rest.max(), end.max()), (rest, speech, end)
        # Parts of the picture move in silence, too: it breathes and blinks; frames follow each other at full speed.
        assert np.abs(np.diff(before.astype(int), axis=0)).mean() > 0.2
        assert float(page.inner_text("#fps")) > 12
        assert re.fullmatch(r"\d+\.\d\d s", page.inner_text("#first")), page.inner_text("#first")
        lines = page.locator("#log li").all_inner_texts()
        assert "Hello! Who are you?" in lines[0] and len(lines[1]) > 20
        leave(page)


def test_an_interruption(browser, address):
    with page_of(browser, address) as page:
        begin(page)
        for stop in (lambda: page.click("#interrupt"), lambda: page.keyboard.press("Escape")):
            say(page, "Tell me a long story about the sea.")
            state(page, "speaking")
            page.wait_for_timeout(900)
            stop()
            state(page, "idle", 3)
            page.wait_for_timeout(400)
            assert loudness(page, 0.8) < SILENT
            assert page.locator("#log li.cut").count() >= 1
        assert page.locator("#log li.cut").count() == 2
        say(page, "Are you still there?")
        state(page, "speaking")
        leave(page)


def test_an_open_microphone_and_the_button(driver, address, tmp_path):
    """The browser's microphone hears a voice, again and again; it stops the avatar, and only while it is wanted."""
    voice, rate = soundfile.read(ROOT / "livetalk" / "assets" / "example" / "speech.wav")
    voice = np.concatenate([np.zeros(2 * rate), voice[: 3 * rate], np.zeros(3 * rate)])
    soundfile.write(tmp_path / "voice.wav", voice, rate)
    microphone = f"--use-file-for-fake-audio-capture={tmp_path / 'voice.wav'}"
    with browsing(driver, microphone) as browser, page_of(browser, address) as page:
        begin(page)
        say(page, "Tell me a long story about the sea.")
        state(page, "speaking")
        page.get_by_text("Open", exact=True).click()
        state(page, "listening", 20)
        page.wait_for_selector("#log li.cut")
        assert page.locator("#level").is_visible()
        page.get_by_text("Mic off").click()
        state(page, "idle", 20)
        page.get_by_text("Hold to talk").click()
        page.wait_for_timeout(4000)
        assert page.get_attribute("body", "data-state") == "idle", "nobody holds the button"
        page.focus("#hold")
        page.keyboard.down("Space")
        assert page.get_attribute("#hold", "aria-pressed") == "true"
        state(page, "listening", 20)
        page.keyboard.up("Space")
        assert page.get_attribute("#hold", "aria-pressed") == "false"
        page.wait_for_selector("body:not([data-state=listening])", timeout=5000)
        leave(page)


def test_another_face_and_files_that_are_none(browser, address):
    picture = io.BytesIO()
    Image.open(BUNDLED[2].file).save(picture, "PNG")
    bad = (
        ({"name": "face.png", "mimeType": "image/png", "buffer": b"no picture"}, "not a PNG picture"),
        ({"name": "face.gif", "mimeType": "image/gif", "buffer": b"GIF89a"}, "JPEG, PNG or WebP"),
        ({"name": "large.png", "mimeType": "image/png", "buffer": bytes(9_000_000)}, "larger than 8 MB"),
    )
    with page_of(browser, address) as page:
        begin(page)
        old = frame(page)
        for file, reason in bad:
            page.set_input_files("#upload", file)
            page.wait_for_selector(f"#alert:has-text('{reason}')")
        assert page.locator("#faces input:checked").get_attribute("value") == "robin"
        good = {"name": "me.png", "mimeType": "image/png", "buffer": picture.getvalue()}
        page.set_input_files("#upload", good)
        page.wait_for_selector("#faces img[alt='Your picture']")
        page.wait_for_selector("#log li.note")
        assert page.locator("#alert").is_hidden()
        for _ in range(50):
            if np.abs(frame(page).astype(int) - old).mean() > 20:
                break
            page.wait_for_timeout(300)
        assert np.abs(frame(page).astype(int) - old).mean() > 20
        leave(page)


def test_one_more_than_there_are_places(browser, address):
    with page_of(browser, address) as first, page_of(browser, address) as second:
        begin(first)
        second.click("#start")
        second.wait_for_selector("#alert:has-text('taken just now')")
        assert second.locator("#start").is_visible() and second.evaluate("document.activeElement.id") == "start"
        leave(first)
        begin(second)
        assert second.locator("#alert").is_hidden()
        leave(second)


def test_only_with_the_keyboard(browser, address):
    """Everything can be reached, has a name, and shows that it is focused."""
    with page_of(browser, address, PHONE) as page:
        nameless = page.evaluate(
            """() => {
              const named = (element) => element.labels?.[0]?.textContent.trim() || element.textContent.trim()
                || element.labels?.[0]?.querySelector('img')?.alt || element.getAttribute('aria-label');
              const all = [...document.querySelectorAll('button, input:not([hidden]), textarea, video, meter')];
              return all.filter((element) => !named(element)).map((element) => element.outerHTML);
            }"""
        )
        assert nameless == []
        reached: list[str] = []
        for _ in range(20):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id || document.activeElement.name"))
            if reached[-1] == "send":
                break
        assert {"start", "face", "upload", "prompt", "text", "send"} <= set(reached)
        page.focus("#start")
        page.keyboard.press("Enter")
        page.wait_for_selector("body[data-phase=live]", timeout=30_000)
        page.wait_for_function("() => document.activeElement.id === 'text'")
        page.keyboard.type("Hello!")
        page.keyboard.press("Enter")
        state(page, "speaking")
        page.keyboard.press("Escape")
        state(page, "idle", 5)
        # What is spoken is read out once, sentence by sentence.
        assert page.inner_text("#status") == "Connected, idle"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        leave(page)


def test_a_server_that_goes_away_and_comes_back(browser):
    with serving("port=0", "logs=plain") as (address, process):
        port = address.rstrip("/").rsplit(":", 1)[1]
        with page_of(browser, address) as page:
            begin(page)
            process.kill()
            process.wait()
            page.wait_for_selector("#alert:has-text('Trying again')", timeout=40_000)
            with serving(f"port={port}"):
                page.wait_for_selector("body[data-phase=live]", timeout=60_000)
                page.wait_for_function("() => document.getElementById('video').currentTime > 0.3")
                assert page.locator("#alert").is_hidden()
                leave(page)


def test_a_token_is_asked_for(browser):
    token = "a-token-of-many-letters"
    with serving("port=0", f"token={token}") as (address, _), page_of(browser, address) as page:
        assert page.locator("#start").is_disabled()
        page.fill("#token", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#alert:has-text('not the token')")
        page.fill("#token", token)
        page.keyboard.press("Enter")
        page.wait_for_selector("#faces img")
        assert page.locator("#door").is_hidden()
        begin(page)
        leave(page)


@pytest.mark.skipif("LIVETALK_SCREENSHOTS" not in os.environ, reason="LIVETALK_SCREENSHOTS names no folder")
@pytest.mark.parametrize(("name", "size"), [("desktop", DESKTOP), ("phone", PHONE)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_screenshots(browser, address, name, size, scheme):
    folder = Path(os.environ["LIVETALK_SCREENSHOTS"])
    with page_of(browser, address, size, scheme, 1 if name == "desktop" else 2) as page:
        begin(page)
        page.wait_for_timeout(1000)
        say(page, "Hello! Who are you?")
        state(page, "speaking")
        page.wait_for_timeout(2600)
        page.screenshot(path=str(folder / f"page-{name}-{scheme}.png"))
        leave(page)
