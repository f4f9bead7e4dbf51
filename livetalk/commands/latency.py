"""`bash scripts/bench.sh --live`: from the end of a typed sentence to the first frame that answers it, by stages."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path

from livetalk.pipeline import example_prompt
from livetalk.realtime.server.settings import ServeRun
from livetalk.realtime.settings import TalkerConfig
from livetalk.streaming.bench import BenchRun
from livetalk.streaming.performer import Performer


def live(run: BenchRun, performer: Performer) -> None:
    """Prints a table and, last, the JSON file that holds it."""
    from livetalk.realtime.server import latency, logs, serving
    from livetalk.realtime.talkers import Talkers

    logs.set_up("plain")
    talkers = Talkers(TalkerConfig())
    talkers.warm()
    own = ServeRun(sessions=1, geometry=performer.geometry)
    with serving.studio_of(own, performer, talkers, " ".join(example_prompt().split())) as studio:
        serving.warm(studio)
        found = asyncio.run(latency.measure(studio, talkers))
    output = Path(run.output) / f"{run.preset}-live.json"
    content = {"milliseconds": [{stage: round(1000 * s, 1) for stage, s in one.items()} for one in found]}
    output.write_text(json.dumps(content | {"settings": asdict(run)}, indent=1) + "\n", encoding="utf-8")
    print(f"first frame after a typed sentence, {performer.device.type}, {len(found)} sentences")
    print(latency.table(found))
    print(output)
