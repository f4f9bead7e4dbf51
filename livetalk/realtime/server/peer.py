"""One WebRTC connection: a viewer's offer in, our answer out, then pictures and sound to it, its voice and messages
from it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial

import numpy as np
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCDataChannel,
    RTCIceServer,
    RTCIceTransport,
    RTCPeerConnection,
    RTCRtpSender,
    RTCSessionDescription,
)
from aiortc.mediastreams import VIDEO_CLOCK_RATE, VIDEO_TIME_BASE, MediaStreamError
from aiortc.sdp import SessionDescription
from av import AudioFrame, VideoFrame

from livetalk.geometry import FPS
from livetalk.media import SYNTHETIC
from livetalk.realtime.server.playout import SEND_RATE, Playout
from livetalk.realtime.server.protocol import CHANNEL, Refused
from livetalk.realtime.server.settings import Network

log = logging.getLogger(__name__)

MOST_OFFER = 65_536
"""Bytes of an offer."""
MOST_CANDIDATES = 64
SECTIONS = ["application", "audio", "video"]
MOST_VOICE = 50
"""Pieces of the viewer's voice that may wait, a second; more push out the oldest."""
MOST_BUFFERED = 262_144
"""Bytes of messages that may wait for a viewer, who is gone or stuck beyond that."""
CLOSE_S = 5.0
LOOPBACK = "127.0.0.1"


class Pictures(MediaStreamTrack):
    """Frames of a Playout, with their times."""

    kind = "video"

    def __init__(self, playout: Playout) -> None:
        super().__init__()
        self._playout = playout

    async def recv(self) -> VideoFrame:
        tick, pixels = await self._playout.frame()
        frame = VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = tick * VIDEO_CLOCK_RATE // FPS, VIDEO_TIME_BASE
        return frame


class Sound(MediaStreamTrack):
    """Its sound."""

    kind = "audio"

    def __init__(self, playout: Playout) -> None:
        super().__init__()
        self._playout = playout

    async def recv(self) -> AudioFrame:
        first, samples = await self._playout.chunk()
        frame = AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.pts, frame.sample_rate, frame.time_base = first, SEND_RATE, Fraction(1, SEND_RATE)
        return frame


class Peer:
    """loopback: offer 127.0.0.1 to the viewer, too. on_message: called with each text or bytes of the control channel,
    on_open once it is there.

    `connected` and `gone` are set when media can flow and when they no longer can; `there` when messages can.
    """

    def __init__(
        self,
        playout: Playout,
        network: Network,
        loopback: bool,
        on_open: Callable[[], None],
        on_message: Callable[[str | bytes], None],
    ) -> None:
        self.connected, self.there, self.gone = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.voice: deque[np.ndarray] = deque(maxlen=MOST_VOICE)
        self._heard = asyncio.Event()
        self._network, self._loopback = network, loopback
        self._on_open, self._on_message = on_open, on_message
        self._channel: RTCDataChannel | None = None
        self._listening: asyncio.Task | None = None
        self._connection = RTCPeerConnection(RTCConfiguration(iceServers=ice_servers(network)))
        self._connection.on("connectionstatechange", self._changed)
        self._connection.on("datachannel", self._opened)
        self._connection.on("track", self._tracked)
        self._pictures, self._sound = Pictures(playout), Sound(playout)

    async def answer(self, offer: str) -> str:
        """SDP for SDP. Raises Refused for an offer that this is no answer to."""
        check_offer(offer)
        for track in (self._sound, self._pictures):
            self._connection.addTrack(track)
        for transceiver in self._connection.getTransceivers():
            if transceiver.kind == "video":
                # The one codec that every browser has; at these sizes it costs a millisecond or two a frame.
                known = RTCRtpSender.getCapabilities("video").codecs
                transceiver.setCodecPreferences([c for c in known if c.mimeType in ("video/VP8", "video/rtx")])
        try:
            await self._connection.setRemoteDescription(RTCSessionDescription(offer, "offer"))
            offer_addresses(self._connection, self._network.addresses, self._loopback)
            await self._connection.setLocalDescription(await self._connection.createAnswer())
        except Exception as error:
            # Whatever a viewer can write into an offer: the library has no one name for it.
            log.info("an offer was not understood: %s", type(error).__name__)
            raise Refused("bad_offer", "the offer is not one that can be answered", 422) from error
        return marked(self._connection.localDescription.sdp)

    def send(self, text: str) -> bool:
        """Sends a message if the channel is open; False if the viewer does not take them any more."""
        if self._channel is None or self._channel.readyState != "open":
            return True
        if self._channel.bufferedAmount > MOST_BUFFERED:
            return False
        self._channel.send(text)
        return True

    async def next_voice(self) -> np.ndarray:
        """The next piece of the viewer's voice, int16 [n] at SEND_RATE."""
        while not self.voice:
            self._heard.clear()
            await self._heard.wait()
        return self.voice.popleft()

    async def round_trip(self) -> float | None:
        """Seconds to the viewer and back, as its reports tell."""
        for report in (await self._connection.getStats()).values():
            if report.type == "remote-inbound-rtp" and report.roundTripTime is not None:
                return report.roundTripTime
        return None

    async def close(self) -> None:
        """Lets go of everything. Safe to call again."""
        self.gone.set()
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
        # Tracks that were never added to a connection are stopped by nobody else.
        self._pictures.stop()
        self._sound.stop()
        closing = asyncio.wait_for(self._connection.close(), CLOSE_S)
        (failure,) = await asyncio.gather(closing, return_exceptions=True)
        if failure is not None:
            # One that an odd offer left half made does not close by itself; its sockets are what must not stay.
            log.warning("a connection did not close: %s", type(failure).__name__)
            stops = [ice.stop() for ice in ice_transports(self._connection)]
            await asyncio.gather(*stops, return_exceptions=True)

    async def _changed(self) -> None:
        state = self._connection.connectionState
        if state == "connected":
            self.connected.set()
        elif state in ("failed", "closed"):
            self.gone.set()

    def _opened(self, channel: RTCDataChannel) -> None:
        if channel.label != CHANNEL or self._channel is not None:
            channel.close()
            return
        self._channel = channel
        channel.on("message", self._on_message)
        channel.on("close", self.gone.set)
        self.there.set()
        self._on_open()

    def _tracked(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio" and self._listening is None:
            self._listening = asyncio.create_task(self._listen(track))

    async def _listen(self, track: MediaStreamTrack) -> None:
        try:
            while True:
                frame = await track.recv()
                samples = frame.to_ndarray().reshape(-1, len(frame.layout.channels))
                self.voice.append(samples.astype(np.int32).mean(axis=1).astype(np.int16))
                self._heard.set()
        except MediaStreamError:
            log.debug("the viewer's voice ended")


def offer_addresses(connection: RTCPeerConnection, chosen: Sequence[str] = (), loopback: bool = True) -> None:
    """Where the connection's media are received: at `chosen` addresses, or at every address of this machine. loopback:
    at 127.0.0.1, too, which the library leaves out, and without which two programs on a machine that has no network
    cannot meet. To be called when what the connection carries is settled and nothing is gathered yet."""
    for ice in ice_transports(connection):
        # The library has no argument for this: one method of this one instance is wrapped.
        gathering = ice.iceGatherer._connection
        gathering.get_component_candidates = partial(
            _gather, gathering.get_component_candidates, tuple(chosen), LOOPBACK if loopback else None
        )


def ice_transports(connection: RTCPeerConnection) -> list[RTCIceTransport]:
    """What its media go through; one where everything shares it."""
    carriers = [transceiver.sender for transceiver in connection.getTransceivers()]
    carriers += [] if connection.sctp is None else [connection.sctp]
    found = [carrier.transport.transport for carrier in carriers if carrier.transport is not None]
    return [ice for at, ice in enumerate(found) if not any(ice is other for other in found[:at])]


async def _gather(
    gather: Callable, chosen: Sequence[str], extra: str | None, component: int, addresses: list[str], **rest
) -> list:
    wanted = list(chosen) or [*addresses, *([extra] if extra else [])]
    return await gather(component=component, addresses=wanted, **rest)


def ice_servers(network: Network) -> list[RTCIceServer]:
    """Of the settings. An empty list: the library's own default asks a server on the internet."""
    servers = [RTCIceServer(network.stun)] if network.stun else []
    if network.turn:
        servers.append(RTCIceServer(network.turn, network.turn_user, network.turn_password))
    return servers


def check_offer(offer: str) -> None:
    """Raises Refused unless it has one section each for sound, pictures and messages, and few candidates: each section
    would cost sockets, and each candidate is an address to which packets are sent."""
    if len(offer.encode("utf-8", "surrogatepass")) > MOST_OFFER:
        raise Refused("too_long", f"the offer is over {MOST_OFFER} bytes", 413)
    try:
        described = SessionDescription.parse(offer)
    except Exception as error:
        raise Refused("bad_offer", "the offer is no session description", 422) from error
    if sorted(media.kind for media in described.media) != SECTIONS:
        raise Refused("bad_offer", "the offer must have one section each for audio, video and a data channel", 422)
    names = [media.rtp.muxId for media in described.media]
    bundled = [group.items for group in described.group if group.semantic == "BUNDLE"]
    if len(set(names)) != len(names) or not all(names) or bundled != [names]:
        raise Refused("bad_offer", "the offer's sections must have names of their own and share one transport", 422)
    if sum(len(media.ice_candidates) for media in described.media) > MOST_CANDIDATES:
        raise Refused("bad_offer", f"the offer has more than {MOST_CANDIDATES} candidates", 422)


def marked(description: str) -> str:
    """A session description that says what it describes."""
    return description.replace("\r\ns=-\r\n", f"\r\ns={SYNTHETIC}\r\n", 1)
