"""LiveTalk: a picture and a voice become a talking head, block by block.

>>> from livetalk import LiveTalkPipeline
>>> pipe = LiveTalkPipeline.from_pretrained("nano")
>>> video = pipe("face.png", "speech.wav", "nods while speaking, smiling", seed=0)
>>> video.save("a.mp4")
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Geometry", "LiveTalkPipeline", "Video"]

# Names are fetched on first use, so that `import livetalk` costs nothing and starts nothing.
_HOMES = {"Geometry": "livetalk.geometry", "LiveTalkPipeline": "livetalk.pipeline", "Video": "livetalk.pipeline"}

if TYPE_CHECKING:
    from livetalk.geometry import Geometry
    from livetalk.pipeline import LiveTalkPipeline, Video


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'livetalk' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
