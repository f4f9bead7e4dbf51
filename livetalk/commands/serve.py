"""`bash scripts/serve.sh`: a page in the browser where one talks to an avatar."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from dataclasses import replace

from livetalk.commands import inference
from livetalk.families import load_pipeline, require_weights
from livetalk.pipeline import example_prompt
from livetalk.realtime.server.settings import ServeRun
from livetalk.streaming.pace import StreamConfig

log = logging.getLogger(__name__)

TOKEN_VARIABLE = "LIVETALK_TOKEN"
ECHO_PREBUFFER_MS = 1000
KEYS = """
host=ADDRESS     where to listen, 127.0.0.1 unless given; any other needs a token
port=N           8080 unless given; 0 takes a free one
token=TEXT       what the page asks for; better in the environment variable LIVETALK_TOKEN
sessions=N       at the same time (2)
talker.kind=...  offline answers by itself, echo speaks with your voice, openai-realtime asks a server
model=NAME       nano, or a family as at inference
mark=false       no visible mark in the picture
The last line printed is the page's address, once it is ready. docs/server.md tells the rest.
"""


def serve(run: ServeRun, dry_run: bool) -> None:
    """Serves until it is stopped; a dry run prints the memory it takes. Raises ValueError for what the user can mend,
    before anything is loaded."""
    own = inference.live_run(run)
    if dry_run:
        print(inference.memory(own))
        return
    run = replace(run, token=run.token or os.environ.get(TOKEN_VARIABLE, ""))
    run.check_door()
    require_weights(own)
    # The server's packages are an extra, and take a second to import.
    from livetalk.realtime.server import logs, serving
    from livetalk.realtime.talkers import Talkers

    prompt = " ".join((run.prompt or example_prompt()).split())
    with serving.listen(run.host, run.port) as listener:
        logs.set_up(run.logs)
        talkers = Talkers(run.talker)
        talkers.warm()
        performer = load_pipeline(own).performer(stream_of(run))
        with serving.studio_of(run, performer, talkers, prompt) as studio:
            serving.warm(studio)
            asyncio.run(serving.serve(studio, listener, announce))


def stream_of(run: ServeRun) -> StreamConfig:
    """The stream's settings. A voice that comes as it is spoken must be a block ahead before it can be performed."""
    if run.talker.kind != "echo" or run.stream.prebuffer_ms:
        return run.stream
    log.info("talker.kind=echo: stream.prebuffer_ms is %d", ECHO_PREBUFFER_MS)
    return replace(run.stream, prebuffer_ms=ECHO_PREBUFFER_MS)


def announce(address: str) -> None:
    print(address)
    sys.stdout.flush()
