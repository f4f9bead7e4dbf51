"""Settings of the server."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass, field

from livetalk.geometry import Geometry
from livetalk.realtime.settings import TalkerConfig
from livetalk.streaming.pace import StreamConfig

LOGS = ("json", "plain")
LEAST_TOKEN = 16
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Limits:
    """What a session may take. Times in seconds, sizes in bytes.

    idle_s: a session in which nothing is typed, said or answered for that long ends. connect_s: an offer whose media do
    not come through within that time is given up. longest_s: 0 lets sessions go on for ever. upload_bytes,
    upload_pixels: of one picture; pictures: uploaded ones that are kept, the oldest go. message_bytes: of one control
    message. messages_per_s: of one session, on average.
    """

    idle_s: float = 300.0
    connect_s: float = 20.0
    longest_s: float = 0.0
    upload_bytes: int = 8 * MEGABYTE
    upload_pixels: int = 40 * MEGABYTE
    pictures: int = 32
    message_bytes: int = 16_384
    messages_per_s: float = 20.0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("idle_s", 1, 86_400),
            ("connect_s", 1, 300),
            ("longest_s", 0, 30 * 86_400),
            ("upload_bytes", 1000, 100 * MEGABYTE),
            ("upload_pixels", 1000, 100 * MEGABYTE),
            ("pictures", 1, 1000),
            ("message_bytes", 256, 65_536),
            ("messages_per_s", 1, 1000),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"limits.{name}={getattr(self, name)}: give a number from {low} to {high}")


@dataclass(frozen=True)
class Network:
    """How media find their way, for viewers who are not on this machine or network.

    stun, turn: servers as stun:HOST:PORT and turn:HOST:PORT, none by default: nothing is asked of the internet.
    turn_user, turn_password: of the TURN server; the page hands them to browsers that may open sessions. addresses:
    offered to browsers for media; by default all of this machine, and 127.0.0.1 where the server is bound to it.
    """

    stun: str = ""
    turn: str = ""
    turn_user: str = ""
    turn_password: str = ""
    addresses: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.stun and not self.stun.startswith("stun:"):
            raise ValueError(f"network.stun={self.stun!r}: write stun:HOST:PORT")
        if self.turn and not self.turn.startswith(("turn:", "turns:")):
            raise ValueError(f"network.turn={self.turn!r}: write turn:HOST:PORT or turns:HOST:PORT")
        if self.turn and not (self.turn_user and self.turn_password):
            raise ValueError("network.turn needs network.turn_user and network.turn_password")
        for address in self.addresses:
            if _address(address) is None:
                raise ValueError(f"network.addresses: {address!r} is no IP address")


@dataclass(frozen=True)
class ServeRun:
    """`scripts/serve.sh`: a page to talk to an avatar.

    model, device, precision, decoder, geometry: as at inference. prompt: how it moves unless the page says otherwise.
    host, port: where to listen; port 0 takes a free one. token: what the page must know, needed as soon as others than
    this machine can reach it, at least LEAST_TOKEN letters; the environment variable LIVETALK_TOKEN may hold it
    instead. names: host names under which the server is reached through a proxy or from elsewhere; a page that was
    loaded under another name is refused (with a token and no names, any is accepted). sessions: at the same time; the
    next one is refused. mark: writes "AI-generated" into the picture. size: the least height and width of the
    video that is sent; smaller pictures are enlarged, so that the mark can be read. logs: json, a line an event, or
    plain.
    """

    run: str = "serve"
    model: str = "nano"
    device: str = "auto"
    precision: str = "auto"
    decoder: str = "auto"
    prompt: str = ""
    seed: int = 0
    host: str = "127.0.0.1"
    port: int = 8080
    token: str = ""
    names: tuple[str, ...] = ()
    sessions: int = 2
    mark: bool = True
    size: int = 384
    logs: str = "json"
    limits: Limits = Limits()
    network: Network = Network()
    geometry: Geometry = field(default_factory=lambda: Geometry(height=128, width=128))
    stream: StreamConfig = StreamConfig()
    talker: TalkerConfig = field(default_factory=TalkerConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise ValueError(f"port={self.port}: give a number from 0 to 65535; 0 takes a free one")
        if not 1 <= self.sessions <= 256:
            raise ValueError(f"sessions={self.sessions}: give a number from 1 to 256")
        if not 16 <= self.size <= 2048 or self.size % 2:
            raise ValueError(f"size={self.size}: give an even number of pixels from 16 to 2048")
        if self.logs not in LOGS:
            raise ValueError(f"logs={self.logs!r}: choose {' or '.join(LOGS)}")
        if any(not name or set(name) & set("/:@ ") for name in self.names):
            raise ValueError(f"names={list(self.names)}: give bare host names, for example names=[talk.example.org]")
        if self.token and len(self.token) < LEAST_TOKEN:
            # The token itself is nobody's business in a log.
            raise ValueError(f"token has {len(self.token)} letters: give at least {LEAST_TOKEN}, hard to guess")
        if any(not 33 <= ord(letter) <= 126 for letter in self.token):
            raise ValueError("token holds spaces or letters that a header cannot carry: use letters and digits")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        address = _address(self.host)
        return self.host == "localhost" or (address is not None and address.is_loopback)

    def check_door(self) -> None:
        """Raises ValueError for a host that cannot be found, and where others than this machine can come in and no
        token is asked of them."""
        resolved(self.host, self.port)
        if self.token:
            return
        remedy = "give token=..., or put it into the environment variable LIVETALK_TOKEN"
        if not self.loopback:
            raise ValueError(f"host={self.host} can be reached by others, and no token is set: {remedy}")
        if self.names:
            raise ValueError(f"names={list(self.names)} let others in through a proxy, and no token is set: {remedy}")


def resolved(host: str, port: int) -> tuple:
    """Where to listen, as socket.getaddrinfo tells it. Raises ValueError for a host that has no address."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ValueError(f"host={host} is no address of this machine: use 127.0.0.1, or 0.0.0.0 for all") from error


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
