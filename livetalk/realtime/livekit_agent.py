"""A worker of LiveKit Agents whose agent has our Performer as its face. One set of weights serves all its sessions.

LiveKit's server spreads rooms over the workers that are registered with it, by the load they tell: more GPUs are more
workers, each with its CUDA_VISIBLE_DEVICES. docs/livekit.md tells how to use another agent with this avatar.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from PIL import Image

from livetalk.media import SYNTHETIC, fit_image, to_pixels
from livetalk.realtime.livekit_avatar import AvatarVideo, avatar_runner
from livetalk.realtime.livekit_settings import SECRETS, LivekitRun
from livetalk.realtime.thinker import Thinker
from livetalk.realtime.voices import Voice
from livetalk.streaming.pace import Clock
from livetalk.streaming.performer import Performer
from livetalk.streaming.session import Hold, Session, Show

if TYPE_CHECKING:
    from livekit.agents import AgentServer, AgentSession, JobContext

log = logging.getLogger(__name__)

FULL = 0.99
"""The load from which on LiveKit sends nobody any more: sessions / most sessions."""


@dataclass(frozen=True)
class Cast:
    """What all sessions of a worker share. session_of: makes the stream of a picture, see Performer.session. finish:
    what is done to each frame."""

    run: LivekitRun
    performer: Performer
    picture: Image.Image
    prompt: str
    session_of: Callable[[Image.Image, str, Clock, Hold, Show], Session]
    finish: Callable
    thinker: Thinker
    voice: Voice

    def avatar(self) -> AvatarVideo:
        """A new one; takes as long as a picture takes to encode."""
        geometry = self.performer.geometry
        still = to_pixels(fit_image(self.picture, geometry.height, geometry.width)[None, :, None])[0]
        return AvatarVideo(partial(self._session), still, self.finish)

    def _session(self, clock: Clock, hold: Hold, show: Show) -> Session:
        return self.session_of(self.picture, self.prompt, clock, hold, show)


async def join(cast: Cast, context: JobContext) -> AgentSession:
    """Brings an avatar and its agent into the room of a job; both go when the job ends."""
    from livekit.agents import Agent, AgentSession
    from livekit.agents.voice.avatar import QueueAudioOutput
    from livekit.agents.voice.room_io import RoomOptions

    from livetalk.realtime.livekit_models import language_model, synthesiser

    await context.connect()
    parts = AsyncExitStack()
    context.add_shutdown_callback(parts.aclose)
    video = await asyncio.get_running_loop().run_in_executor(None, cast.avatar)
    parts.push_async_callback(video.aclose)
    output = QueueAudioOutput(wait_playback_start=True)
    runner = avatar_runner(context.room, output, video)
    await runner.start()
    parts.push_async_callback(runner.aclose)
    await context.room.local_participant.set_attributes({"synthetic": "true", "notice": SYNTHETIC})
    session = AgentSession(llm=language_model(cast.thinker), tts=synthesiser(cast.voice))
    parts.push_async_callback(session.aclose)
    session.output.audio = output
    # It understands what is typed; who adds a recogniser of speech (stt=) wants audio_input, too.
    options = RoomOptions(audio_input=False, audio_output=False)
    await session.start(Agent(instructions=cast.run.talker.instructions), room=context.room, room_options=options)
    if cast.run.greeting:
        session.say(cast.run.greeting)
    return session


def require_secrets(environment: Mapping[str, str]) -> None:
    """Raises ValueError where one is missing."""
    missing = [name for name in SECRETS if not environment.get(name)]
    if missing:
        raise ValueError(
            f"the environment has no {' and no '.join(missing)}: set what the LiveKit server at url= knows"
        )


def agent_server(cast: Cast, environment: Mapping[str, str]) -> AgentServer:
    """The worker; `await server.run()` serves until `aclose`. Raises ValueError where a secret is missing."""
    from livekit.agents import AgentServer, JobExecutorType

    require_secrets(environment)
    run = cast.run
    server = AgentServer(
        # Threads, because processes would load the weights once each.
        job_executor_type=JobExecutorType.THREAD,
        num_idle_processes=1,
        load_fnc=lambda server: len(server.active_jobs) / run.sessions,
        load_threshold=FULL,
        ws_url=run.url,
        api_key=environment[SECRETS[0]],
        api_secret=environment[SECRETS[1]],
        host=run.host,
        port=run.port,
    )

    async def entry(context: JobContext) -> None:
        log.info("a session begins in room %s", context.room.name)
        await join(cast, context)

    server.rtc_session(entry, agent_name=run.name)
    return server
