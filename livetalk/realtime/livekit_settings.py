"""Settings of the LiveKit agent."""

from __future__ import annotations

from dataclasses import dataclass, field

from livetalk.geometry import Geometry
from livetalk.realtime.settings import TalkerConfig
from livetalk.streaming.pace import StreamConfig

SECRETS = ("LIVEKIT_API_KEY", "LIVEKIT_API_SECRET")
"""Environment variables; what they hold never stands in a config."""


@dataclass(frozen=True)
class LivekitRun:
    """`scripts/livekit_agent.sh`: a worker of LiveKit that sends an avatar into each room it is called to.

    model, device, precision, decoder, geometry: as at inference. url: of the LiveKit server, ws:// or wss://; its key
    and secret are in the environment (SECRETS). name: rooms must ask for an agent of that name; with an empty one it
    goes into every new room. face: one of those that come with the package, or a picture's file. prompt: how it moves.
    greeting: what it says first, if anything. sessions: at the same time; LiveKit sends the next one to another worker.
    host, port: where this worker tells of its health; port 0 takes a free one. mark, size: as in ServeRun. talker: of
    kind offline, whose thinker and speaker are used.
    """

    run: str = "livekit_agent"
    model: str = "nano"
    device: str = "auto"
    precision: str = "auto"
    decoder: str = "auto"
    prompt: str = ""
    face: str = "robin"
    greeting: str = "Hello! Type a sentence, and I will answer."
    seed: int = 0
    url: str = "ws://127.0.0.1:7880"
    name: str = ""
    sessions: int = 2
    host: str = "127.0.0.1"
    port: int = 8081
    mark: bool = True
    size: int = 384
    geometry: Geometry = field(default_factory=lambda: Geometry(height=128, width=128))
    stream: StreamConfig = StreamConfig()
    talker: TalkerConfig = field(default_factory=TalkerConfig)

    def __post_init__(self) -> None:
        if not self.url.startswith(("ws://", "wss://")):
            raise ValueError(f"url={self.url!r}: give the LiveKit server's ws:// or wss:// address")
        if not 1 <= self.sessions <= 256:
            raise ValueError(f"sessions={self.sessions}: give a number from 1 to 256")
        if not 0 <= self.port <= 65_535:
            raise ValueError(f"port={self.port}: give a number from 0 to 65535; 0 takes a free one")
        if not 16 <= self.size <= 2048 or self.size % 2:
            raise ValueError(f"size={self.size}: give an even number of pixels from 16 to 2048")
        if self.talker.kind != "offline":
            raise ValueError(
                f"talker.kind={self.talker.kind!r}: the LiveKit agent answers offline; for others use LiveKit's plugins"
            )
