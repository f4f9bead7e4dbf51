"""`bash scripts/serve_fleet.sh`: the page's server on several GPUs, behind one address."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from livetalk.commands import inference
from livetalk.commands.serve import TOKEN_VARIABLE, announce
from livetalk.families import load_pipeline, require_weights
from livetalk.pipeline import example_prompt
from livetalk.realtime.server.fleet.settings import FleetRun
from livetalk.realtime.server.settings import ServeRun

if TYPE_CHECKING:
    from livetalk.realtime.server.call import Studio

KEYS = """
replicas=N         servers that Ray Serve starts, each on a GPU of its own (2)
gpus=N             of each; 0 where there is none
servers=[...]      HOST:PORT of servers that run already, instead: no Ray is needed
cluster=auto       use the Ray cluster this machine is in
server.KEY=VALUE   as for scripts/serve.sh; server.host and server.port are those of the one address
The last line printed is the page's address, once it is ready. docs/scaling.md tells the rest.
"""


def serve_fleet(run: FleetRun, dry_run: bool) -> None:
    """Serves until it is stopped; a dry run prints the memory one server takes. Raises ValueError for what the user can
    mend, before anything is loaded."""
    own = inference.live_run(run.server)
    if dry_run:
        print(inference.memory(own))
        return
    token = run.server.token or os.environ.get(TOKEN_VARIABLE, "")
    run = replace(run, server=replace(run.server, token=token))
    run.check_door()
    if run.servers:
        asyncio.run(route(run))
        return
    require_weights(own)
    if find_spec("ray") is None:
        raise ValueError(
            "Ray Serve is not installed: pip install -e '.[realtime,ray]', or name servers=[HOST:PORT,...]"
        )
    with deployed(run) as address:
        announce(address)
        signal.pause()


@contextmanager
def opened(run: ServeRun) -> Iterator[Studio]:
    """What one server needs, loaded and warm."""
    from livetalk.realtime.server import logs, serving
    from livetalk.realtime.talkers import Talkers

    logs.set_up(run.logs)
    talkers = Talkers(run.talker)
    talkers.warm()
    performer = load_pipeline(inference.live_run(run)).performer(run.stream)
    prompt = " ".join((run.prompt or example_prompt()).split())
    with serving.studio_of(run, performer, talkers, prompt) as studio:
        serving.warm(studio)
        yield studio


@contextmanager
def deployed(run: FleetRun) -> Iterator[str]:
    """The address of a fleet on Ray Serve, for as long as the block lasts."""
    # Nothing of what runs here is reported to anybody.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray import serve

    from livetalk.realtime.server.fleet.ray_serve import application
    from livetalk.realtime.server.serving import ANYWHERE

    asked_to_stop = signal.getsignal(signal.SIGTERM)
    ray.init(address=run.cluster or "local", include_dashboard=False, namespace="livetalk", log_to_driver=False)
    # It takes the signal for a crash, prints a stack and dies on the spot.
    signal.signal(signal.SIGTERM, asked_to_stop)
    try:
        serve.start(http_options={"host": run.server.host, "port": run.server.port})
        serve.run(application(run, opened), name="livetalk", route_prefix="/")
        yield f"http://{ANYWHERE.get(run.server.host, run.server.host)}:{run.server.port}/"
        serve.shutdown()
    finally:
        ray.shutdown()


async def route(run: FleetRun) -> None:
    """Routes to servers that run already, until it is stopped."""
    import uvicorn

    from livetalk.realtime.server import logs, serving
    from livetalk.realtime.server.app import policy_of
    from livetalk.realtime.server.fleet.roster import Roster
    from livetalk.realtime.server.fleet.router import make_router

    logs.set_up(run.server.logs)

    async def source() -> dict[str, str]:
        return {address: address for address in run.servers}

    roster = Roster(source, run.server.token)
    app = make_router(roster, policy_of(run.server), run.server.limits.upload_bytes)
    with serving.listen(run.server.host, run.server.port) as listener:
        config = uvicorn.Config(app, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=2)
        serving_all = asyncio.create_task(uvicorn.Server(config).serve(sockets=[listener]))
        announce(serving.address_of(run.server.host, listener))
        await serving_all
