"""The page in headless Chromium behind a router: a server that is killed is told of at once, and one can go on."""

import json
import os
import signal
import time
from contextlib import ExitStack

import pytest

from tests.realtime.server.browser import begin, browsing, chromium, page_of
from tests.realtime.server.fleet.conftest import bare, process, routing
from tests.realtime.server.viewer import fetch

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason="no Chromium is installed: apt-get install chromium"),
]
TOKEN = "a-token-hard-to-guess"
LOST = "#alert:has-text('server of this session is gone')"


def test_a_killed_server_is_told_of_and_another_takes_over(tiny_family):
    from playwright.sync_api import sync_playwright

    def with_the_session() -> int:
        """The process that the page's session is on."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        free = {pid: json.loads(fetch(at, "/api/setup", headers=headers)[2])["free"] for pid, at in servers}
        [busy] = [pid for pid, places in free.items() if places == 1]
        return busy

    with ExitStack() as stack:
        servers = [stack.enter_context(process(tiny_family, f"token={TOKEN}")) for _ in range(2)]
        address = stack.enter_context(routing({str(pid): bare(at) for pid, at in servers}, TOKEN))
        browser = stack.enter_context(browsing(stack.enter_context(sync_playwright())))
        page = stack.enter_context(page_of(browser, address))
        page.fill("#token", TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_selector("#faces img")
        begin(page)
        # Nothing is said while all is well.
        page.wait_for_timeout(1500)
        assert page.locator("#alert").is_hidden()
        os.kill(with_the_session(), signal.SIGKILL)
        killed = time.monotonic()
        page.wait_for_selector(LOST, timeout=5000)
        # A connection alone would take six seconds to notice.
        print(f"told after {time.monotonic() - killed:.2f} s")
        assert time.monotonic() - killed < 3
        assert page.inner_text("#start") == "Start again" and page.locator("#leave").is_visible()
        page.click("#start")
        page.wait_for_selector("body[data-phase=live]", timeout=30_000)
        page.wait_for_function("() => document.getElementById('video').currentTime > 0.3", timeout=20_000)
        assert page.locator("#alert").is_hidden()
        assert "knows nothing of the one before" in page.locator("#log li.note").last.inner_text()
        assert page.inner_text("#status").startswith("Connected")
        page.click("#leave")
        page.wait_for_selector("body[data-phase=start]")
        assert page.inner_text("#start") == "Start talking" and page.locator("#alert").is_hidden()
