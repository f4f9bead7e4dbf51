"""`bash scripts/livekit_agent.sh`: a worker of LiveKit Agents whose agent has an avatar's face."""

from __future__ import annotations

import asyncio
import os
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from livetalk.commands import inference
from livetalk.families import load_pipeline, require_weights
from livetalk.media import read_image
from livetalk.pipeline import example_prompt
from livetalk.realtime.livekit_settings import LivekitRun

if TYPE_CHECKING:
    from livekit.agents import AgentServer
    from PIL import Image

    from livetalk.realtime.livekit_agent import Cast

KEYS = """
url=ws://HOST:PORT   the LiveKit server; LIVEKIT_API_KEY and LIVEKIT_API_SECRET are in the environment
name=TEXT            rooms ask for it by this name; empty, it goes into every new room
sessions=N           at the same time (2)
face=NAME_OR_FILE    robin, lin, amara, ruth, or a picture
model=NAME           nano, or a family as at inference
docs/livekit.md tells the rest.
"""


def livekit_agent(run: LivekitRun, dry_run: bool) -> None:
    """Serves until it is stopped; a dry run prints the memory it takes. Raises ValueError for what the user can mend,
    before anything is loaded."""
    own = inference.live_run(run)
    if dry_run:
        print(inference.memory(own))
        return
    if find_spec("livekit") is None:
        raise ValueError("LiveKit Agents is not installed: pip install -e '.[livekit]'")
    from livetalk.realtime.livekit_agent import agent_server, require_secrets

    require_secrets(os.environ)
    require_weights(own)
    picture = picture_of(run.face)
    asyncio.run(serve(agent_server(cast_of(run, picture), os.environ)))


def picture_of(face: str) -> Image.Image:
    """Of a face that comes with the package, or of a file. Raises ValueError if it is neither."""
    from livetalk.realtime.server.faces import BUNDLED

    files = {bundled.name: bundled.file for bundled in BUNDLED}
    if face not in files and not Path(face).is_file():
        raise ValueError(f"face={face} is no file, nor one of {', '.join(files)}")
    return read_image(files.get(face, Path(face)))


def cast_of(run: LivekitRun, picture: Image.Image) -> Cast:
    """Loads what the sessions share."""
    from livetalk.realtime.livekit_agent import Cast
    from livetalk.realtime.server.mark import Finish
    from livetalk.realtime.server.turns import SharedSession, Turns
    from livetalk.realtime.talkers import Talkers

    talkers = Talkers(run.talker)
    talkers.warm()
    performer = load_pipeline(inference.live_run(run)).performer(run.stream)
    turns, geometry = Turns(), performer.geometry

    def session_of(image, prompt, clock, hold, show) -> SharedSession:
        return SharedSession(performer, image, prompt, run.seed, clock, hold, show, turns)

    finish = Finish(geometry.height, geometry.width, run.size, run.mark)
    prompt = " ".join((run.prompt or example_prompt()).split())
    return Cast(run, performer, picture, prompt, session_of, finish, talkers.thinker, talkers.voice)


async def serve(server: AgentServer) -> None:
    """Until it is cancelled."""
    server.on("worker_registered", partial(announce, server))
    try:
        await server.run()
    finally:
        await server.aclose()


def announce(server: AgentServer, name: str, *_) -> None:
    print(f"registered as {name}")
    sys.stdout.flush()
