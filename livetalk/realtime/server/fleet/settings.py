"""Settings of many servers behind one address."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from livetalk.realtime.server.settings import ServeRun

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class FleetRun:
    """`scripts/serve_fleet.sh`: the page's server on several GPUs, behind one address.

    server: what each of them is, as for scripts/serve.sh; its host, port, token and names are those of the one address.
    servers: HOST:PORT of servers that run already, which are only routed to. Without any, Ray Serve starts `replicas`
    of them, each with `gpus` and `cpus` of its own. cluster: the address of a Ray cluster, "auto" for the one this
    machine is in; without one, Ray is started here for as long as this runs.
    """

    run: str = "serve_fleet"
    servers: tuple[str, ...] = ()
    replicas: int = 2
    gpus: float = 1.0
    cpus: float = 1.0
    cluster: str = ""
    server: ServeRun = field(default_factory=ServeRun)

    def __post_init__(self) -> None:
        for address in self.servers:
            host, _, port = address.rpartition(":")
            if not host or not port.isdigit() or not 0 < int(port) < 65_536:
                raise ValueError(f"servers: {address!r} is no HOST:PORT, for example 10.0.0.7:8080")
        if not 1 <= self.replicas <= 256:
            raise ValueError(f"replicas={self.replicas}: give a number from 1 to 256")
        for name in ("gpus", "cpus"):
            if not 0 <= getattr(self, name) <= 64:
                raise ValueError(f"{name}={getattr(self, name)}: give a number from 0 to 64")

    def replica(self, host: str) -> ServeRun:
        """What one replica that listens at `host` is. Only the router asks it, so it needs no names."""
        return replace(self.server, host=host, port=0, names=())

    def check_door(self) -> None:
        """Raises ValueError where others than this machine can come in and no token is asked of them."""
        self.server.check_door()
        if self.cluster and not self.server.token:
            raise ValueError("replicas of a cluster can be reached by others: give server.token=, or LIVETALK_TOKEN")
