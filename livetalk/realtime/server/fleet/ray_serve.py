"""The servers as deployments of Ray Serve: replicas, each with a GPU of its own, and the router as the ingress.

A replica listens on a port of its own machine, because a viewer's media must reach it directly in any case; Ray places
it, watches its health and starts another where one dies. The router finds them in a roll, an actor that they report to.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING

from fastapi import FastAPI

from livetalk.realtime.server import serving
from livetalk.realtime.server.app import policy_of
from livetalk.realtime.server.call import Studio
from livetalk.realtime.server.fleet.roster import Roster
from livetalk.realtime.server.fleet.router import make_router
from livetalk.realtime.server.fleet.settings import LOOPBACK, FleetRun
from livetalk.realtime.server.settings import ServeRun

if TYPE_CHECKING:
    from ray.serve import Application

log = logging.getLogger(__name__)

NAMESPACE, ROLL = "livetalk", "livetalk-roll"
REPORT_S = 2.0
FORGET_S = 15.0
"""A replica that has not reported for so long is looked for no more."""
READY_S = 600.0

Opened = Callable[[ServeRun], AbstractContextManager[Studio]]
"""Loads what a server needs and lets go of it; pickled by name."""


class Roll:
    """Where replicas are, as they report it."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[str, float]] = {}

    def report(self, name: str, address: str) -> None:
        self._places[name] = (address, time.monotonic())

    def there(self) -> dict[str, str]:
        """HOST:PORT by name, of those that reported lately."""
        limit = time.monotonic() - FORGET_S
        self._places = {name: place for name, place in self._places.items() if place[1] > limit}
        return {name: address for name, (address, _) in self._places.items()}


def roll():
    """The one actor that keeps the roll."""
    import ray

    options = {"name": ROLL, "namespace": NAMESPACE, "get_if_exists": True, "num_cpus": 0}
    return ray.remote(Roll).options(**options).remote()


class Hosted:
    """A server in a thread of this process. host: where it listens, at a free port."""

    def __init__(self, run: ServeRun, opened: Opened) -> None:
        self.name = uuid.uuid4().hex[:12]
        self._stack, self._servers = ExitStack(), []
        ready = threading.Event()
        studio = self._stack.enter_context(opened(run))
        listener = self._stack.enter_context(serving.listen(run.host, 0))
        self.address = serving.address_of(run.host, listener).removeprefix("http://").rstrip("/")
        served = serving.serve(studio, listener, lambda address: ready.set(), self._servers.append)
        self._thread = threading.Thread(target=lambda: asyncio.run(served), name="livetalk-server", daemon=True)
        self._thread.start()
        if not ready.wait(READY_S):
            raise RuntimeError(f"the server did not begin within {READY_S:g} s")

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        """Tells viewers that it closes, and waits."""
        for server in self._servers:
            server.should_exit = True
        self._thread.join(serving_out())
        self._stack.close()


def serving_out() -> float:
    """Seconds that a server may take to see its sessions out."""
    from livetalk.realtime.server.desk import CLOSING_S

    return CLOSING_S + 5


def application(run: FleetRun, opened: Opened) -> Application:
    """For serve.run(..., route_prefix="/")."""
    from ray import serve

    @serve.deployment(
        name="server",
        num_replicas=run.replicas,
        ray_actor_options={"num_gpus": run.gpus, "num_cpus": run.cpus},
        health_check_period_s=REPORT_S,
        graceful_shutdown_timeout_s=serving_out(),
    )
    class Server:
        def __init__(self) -> None:
            import ray

            self._hosted = Hosted(run.replica(ray.util.get_node_ip_address() if run.cluster else LOOPBACK), opened)
            self._roll = roll()
            self.check_health()

        def check_health(self) -> None:
            if not self._hosted.alive:
                raise RuntimeError("the server's thread has ended")
            self._roll.report.remote(self._hosted.name, self._hosted.address)

        def pid(self) -> tuple[int, str]:
            """Of its process, and its name."""
            import os

            return os.getpid(), self._hosted.name

        def __del__(self) -> None:
            self._hosted.close()

    @serve.deployment(name="front", num_replicas=1, ray_actor_options={"num_cpus": 0})
    @serve.ingress(lambda: front(run))
    class Front:
        def __init__(self, servers) -> None:
            # Serve starts what a deployment holds a handle of.
            self._servers = servers

    return Front.bind(Server.bind())


def front(run: FleetRun) -> FastAPI:
    """The router's application, made where it runs."""
    return make_router(Roster(Rolled(), run.server.token), policy_of(run.server), run.server.limits.upload_bytes)


class Rolled:
    """A roster's source that asks the roll, and says what it said before while the roll is being started anew."""

    def __init__(self) -> None:
        self._roll, self._latest = None, {}

    async def __call__(self) -> Mapping[str, str]:
        import ray

        try:
            self._roll = self._roll or roll()
            self._latest = await self._roll.there.remote()
        except ray.exceptions.RayError as error:
            log.warning("the roll does not answer: %s", type(error).__name__)
            self._roll = None
        return self._latest
