"""Settings, the mark, the stopwatch, logs."""

from __future__ import annotations

import io
import json
import logging

import numpy as np
import pytest
from PIL import Image

from livetalk import config
from livetalk.realtime.server import logs
from livetalk.realtime.server.mark import Finish
from livetalk.realtime.server.settings import Limits, Network, ServeRun
from livetalk.realtime.server.stages import STAGES, Stopwatch

TOKEN = "a-token-of-many-letters"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["port=70000"], "port=70000"),
        (["sessions=0"], "sessions=0"),
        (["token=short"], "token has 5 letters"),
        (["token=a token with spaces"], "token holds"),
        (["names=[http://a.example]"], "bare host names"),
        (["logs=loud"], "logs='loud'"),
        (["size=17"], "size=17"),
        (["limits.idle_s=0"], "limits.idle_s=0"),
        (["network.stun=a"], "stun:HOST:PORT"),
        (["network.turn=turn:a:1"], "turn_user"),
        (["network.addresses=[here]"], "'here' is no IP address"),
        (["sesions=3"], "did you mean 'sessions'"),
    ],
)
def test_settings_that_cannot_be(settings, reason):
    with pytest.raises(ValueError, match=reason.replace("[", r"\[")):
        config.load(None, settings, run="serve")


def test_a_token_is_needed_where_others_can_come_in():
    for open_door in (ServeRun(host="0.0.0.0"), ServeRun(host="::"), ServeRun(names=("talk.example.org",))):
        with pytest.raises(ValueError, match="no token is set"):
            open_door.check_door()
    for closed in (
        ServeRun(),
        ServeRun(host="localhost"),
        ServeRun(host="::1"),
        ServeRun(host="127.0.0.2"),
        ServeRun(host="0.0.0.0", token=TOKEN),
    ):
        closed.check_door()
    with pytest.raises(ValueError, match="token has") as caught:
        ServeRun(token="secret")
    assert "secret" not in str(caught.value)


def test_limits_and_network_have_defaults_that_ask_nobody():
    assert Network().stun == Network().turn == "" and Limits().longest_s == 0


@pytest.mark.parametrize("size", [(128, 128, 384), (512, 512, 384), (64, 96, 256), (16, 16, 16)])
def test_the_mark(size):
    height, width, least = size
    frame = np.full((height, width, 3), 90, np.uint8)
    plain, marked = Finish(height, width, least, False)(frame), Finish(height, width, least, True)(frame)
    assert plain.shape == marked.shape and min(marked.shape[:2]) >= least and marked.flags.c_contiguous
    assert (plain == 90).all() and (frame == 90).all()
    changed = (marked != plain).any(axis=2)
    assert 0.005 < changed.mean() < (0.1 if height > 16 else 1)
    if height > 16:
        # In the lower left corner, with letters that stand out.
        rows, columns = np.nonzero(changed)
        assert rows.min() > 0.85 * marked.shape[0] and columns.max() < 0.6 * marked.shape[1]
        assert marked[changed].max() > 230 and marked[changed].min() < 60


def test_enlarging_keeps_the_picture():
    picture = np.asarray(Image.radial_gradient("L").convert("RGB").resize((128, 128)))
    out = Finish(128, 128, 384, False)(picture)
    back = np.asarray(Image.fromarray(out).resize((128, 128), Image.Resampling.BOX))
    assert out.shape == (384, 384, 3) and np.abs(back.astype(int) - picture).mean() < 1


def test_stages_are_marked_in_order_and_once():
    watch = Stopwatch()
    assert not watch.mark("speak", 0.0) and watch.milliseconds() == {}
    watch.start(1.0)
    assert not watch.mark("send", 1.1)
    for at, stage in enumerate(STAGES):
        assert watch.mark(stage, 1.2 + at / 10) and not watch.mark(stage, 9.0)
        assert (watch.total is None) is (at < 2)
    assert watch.milliseconds() == {"speak": 200, "perform": 100, "send": 100} and watch.total == pytest.approx(0.4)
    watch.start(5.0)
    assert watch.milliseconds() == {}


@pytest.mark.parametrize("kind", ["json", "plain"])
def test_logs(kind, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(logs.sys, "stderr", stream)
    root = logging.getLogger()
    before = root.handlers[:], root.level, {name: logging.getLogger(name).level for name in logs.LOUD}
    try:
        logs.set_up(kind)
        log = logging.getLogger("livetalk.test")
        log.info("session ended", extra={"session": "abc", "reason": "idle", "text": "what was said"})
        try:
            raise RuntimeError("broken")
        except RuntimeError:
            log.exception("it failed")
        logging.getLogger("aioice.ice").info("Connection(0) Check CandidatePair(('192.0.2.7'")
    finally:
        root.handlers[:], level, levels = before[0], before[1], before[2]
        root.setLevel(level)
        for name, own in levels.items():
            logging.getLogger(name).setLevel(own)
    written = stream.getvalue()
    assert "what was said" not in written and "192.0.2.7" not in written and "RuntimeError: broken" in written
    if kind == "json":
        first, second = map(json.loads, written.splitlines())
        assert first["session"] == "abc" and first["reason"] == "idle" and first["event"] == "session ended"
        assert second["level"] == "error" and "Traceback" in second["trace"]
    else:
        assert written.startswith("info: session ended session=abc reason=idle\n")
