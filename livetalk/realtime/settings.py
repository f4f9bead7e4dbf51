"""Settings of talkers."""

from __future__ import annotations

from dataclasses import dataclass, field

from livetalk.realtime.detector import DetectorConfig
from livetalk.realtime.talker import MOST_LETTERS

KINDS = ("offline", "echo", "openai-realtime")
THINKERS = ("rules", "smollm2")
SPEAKERS = ("espeak", "piper")
TURN_DETECTION = ("server_vad", "semantic_vad", "none")
DIALECTS = ("ga", "beta")


@dataclass(frozen=True)
class RealtimeServer:
    """A server of the OpenAI Realtime protocol.

    url: ws:// or wss://. model: as the server names it; may be empty where a server has just one. key_variable: the
    environment variable that holds the key, which itself never stands in a config and is never logged; where the
    variable is not set, none is sent. turn_detection: who finds the end of the user's sentence, "none" is the
    push-to-talk button. dialect: "ga" says session.update as documented since 2025-08, which vLLM-Omni understands,
    "beta" as before; what comes back is understood in both. rate: samples a second of PCM16 in both directions.
    transcribe: the model that writes down what the user says, empty for none. retries: attempts to connect again
    before giving up, with waits that double from backoff_s to at most 30 s. answer_s: how long an answer may say
    nothing before it is given up.
    """

    url: str = "ws://127.0.0.1:8000/v1/realtime"
    model: str = ""
    key_variable: str = "OPENAI_API_KEY"
    turn_detection: str = "server_vad"
    dialect: str = "ga"
    rate: int = 24_000
    transcribe: str = ""
    connect_s: float = 10.0
    answer_s: float = 30.0
    retries: int = 6
    backoff_s: float = 0.5

    def __post_init__(self) -> None:
        if not self.url.startswith(("ws://", "wss://")):
            raise ValueError(f"server.url={self.url!r}: give a ws:// or wss:// address")
        _one_of("server.turn_detection", self.turn_detection, TURN_DETECTION)
        _one_of("server.dialect", self.dialect, DIALECTS)
        _between("server.rate", self.rate, 8000, 48_000)
        _between("server.connect_s", self.connect_s, 0.1, 120)
        _between("server.answer_s", self.answer_s, 0.1, 600)
        _between("server.retries", self.retries, 0, 100)
        _between("server.backoff_s", self.backoff_s, 0.01, 30)


@dataclass(frozen=True)
class TalkerConfig:
    """What answers the user.

    kind: "offline" reads what is typed and answers by itself; "echo" speaks with the user's own voice;
    "openai-realtime" asks a server. thinker (offline): "rules", or "smollm2", a language model of 135 M parameters.
    speaker (offline): "espeak", or "piper", a more natural voice. voice: its name for that speaker or server; empty
    for the usual one. pace: words a minute, of espeak. instructions: what a language model is told about itself.
    memory: earlier sentences that it is shown. seed: the same seed and sentences give the same answers. ahead_s:
    seconds of speech made ahead of the reader.
    """

    kind: str = "offline"
    thinker: str = "rules"
    speaker: str = "espeak"
    voice: str = ""
    pace: int = 165
    instructions: str = "You are a helpful AI assistant. Answer in one short sentence."
    memory: int = 8
    seed: int = 0
    ahead_s: float = 10.0
    server: RealtimeServer = field(default_factory=RealtimeServer)
    detector: DetectorConfig = field(default_factory=DetectorConfig)

    def __post_init__(self) -> None:
        _one_of("talker.kind", self.kind, KINDS)
        _one_of("talker.thinker", self.thinker, THINKERS)
        _one_of("talker.speaker", self.speaker, SPEAKERS)
        _between("talker.pace", self.pace, 80, 400)
        _between("talker.memory", self.memory, 0, 100)
        _between("talker.seed", self.seed, 0, 2**63 - 1)
        _between("talker.ahead_s", self.ahead_s, 1, 600)
        if len(self.instructions) > 4 * MOST_LETTERS:
            raise ValueError(f"talker.instructions has {len(self.instructions)} letters: at most {4 * MOST_LETTERS}")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(known)}")


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name}={value}: give a number from {low} to {high}")
