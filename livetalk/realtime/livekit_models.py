"""Our Thinker and Voice as a language model and a speech synthesiser of LiveKit Agents, so that its example agent works
offline. Any other of LiveKit's plugins may stand in the place of either."""

from __future__ import annotations

import uuid
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from livetalk.realtime.lanes import Worker
from livetalk.realtime.thinker import Line, Thinker
from livetalk.realtime.voices import Voice

if TYPE_CHECKING:
    from livekit.agents import llm, tts

DEFAULT_RATE = 22_050


def lines_of(context: llm.ChatContext) -> list[Line]:
    """What was said in a conversation; instructions and tool calls are left out."""
    messages = (item for item in context.items if item.type == "message" and item.role in ("user", "assistant"))
    lines = [Line(message.role == "user", " ".join((message.text_content or "").split())) for message in messages]
    return [line for line in lines if line.text]


def language_model(thinker: Thinker) -> llm.LLM:
    """The thinker, piece by piece, in a thread of its own for each answer. It knows no tools."""
    from livekit.agents import llm

    class Answer(llm.LLMStream):
        async def _run(self) -> None:
            name, mind = uuid.uuid4().hex, Worker("livetalk-think")
            pieces = thinker.think(lines_of(self._chat_ctx))
            try:
                while (piece := await mind.run(partial(next, pieces, None))) is not None:
                    delta = llm.ChoiceDelta(role="assistant", content=piece)
                    self._event_ch.send_nowait(llm.ChatChunk(id=name, delta=delta))
            finally:
                # In its thread, where a piece may still be in the making.
                mind.later(pieces.close)
                await mind.close()

    class Model(llm.LLM):
        def chat(self, *, chat_ctx, tools=None, conn_options=llm.llm.DEFAULT_API_CONNECT_OPTIONS, **_) -> Answer:
            return Answer(self, chat_ctx=chat_ctx, tools=tools or [], conn_options=conn_options)

    return Model()


def synthesiser(voice: Voice, rate: int = DEFAULT_RATE) -> tts.TTS:
    """The voice, sentence by sentence. rate: samples a second that come out."""
    import soxr
    from livekit.agents import tts

    class Spoken(tts.ChunkedStream):
        async def _run(self, output_emitter: tts.AudioEmitter) -> None:
            output_emitter.initialize(
                request_id=uuid.uuid4().hex, sample_rate=rate, num_channels=1, mime_type="audio/pcm"
            )
            mouth = Worker("livetalk-speak")
            try:
                said = await mouth.run(partial(voice.say, self.input_text))
            finally:
                await mouth.close()
            pcm = said.pcm if said.rate == rate else soxr.resample(said.pcm, said.rate, rate)
            output_emitter.push((np.clip(pcm, -1, 1) * 32767).astype(np.int16).tobytes())
            output_emitter.flush()

    class Speaker(tts.TTS):
        def __init__(self) -> None:
            super().__init__(capabilities=tts.TTSCapabilities(streaming=False), sample_rate=rate, num_channels=1)

        def synthesize(self, text: str, *, conn_options=tts.tts.DEFAULT_API_CONNECT_OPTIONS) -> Spoken:
            return Spoken(tts=self, input_text=text, conn_options=conn_options)

    return Speaker()
