"""Replicas as they come, hang, come back and talk nonsense, played by small servers in the test's own loop."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from livetalk import config
from livetalk.realtime.server.fleet import roster as module
from livetalk.realtime.server.fleet.client import Connection, Unreachable
from livetalk.realtime.server.fleet.roster import Roster
from livetalk.realtime.server.fleet.settings import FleetRun
from livetalk.realtime.server.settings import ServeRun
from tests.realtime.conftest import run


class Fake:
    """Answers readiness and set-up, as it is told. hung: says nothing any more."""

    def __init__(self, free: int = 1) -> None:
        self.free, self.ready, self.hung, self.raw = free, 200, False, None
        self.asked: list[str] = []
        self._writers = []

    async def talk(self, reader, writer) -> None:
        self._writers.append(writer)
        while head := await reader.readline():
            self.asked.append(head.decode().split()[1])
            while (await reader.readline()).strip():
                continue
            if self.hung:
                return
            body = b'{"free": %d, "sessions": 9}' % self.free
            status = self.ready if self.asked[-1] == "/readyz" else 200
            plain = b"HTTP/1.1 %d x\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body)
            writer.write(plain if self.raw is None else self.raw)
            await writer.drain()
            if self.raw is not None and b"length: 2" not in self.raw:
                writer.close()
                return

    @asynccontextmanager
    async def there(self, port: int = 0):
        """Its port, while it lives; then its connections break, as those of a killed process do."""
        server = await asyncio.start_server(self.talk, "127.0.0.1", port)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for writer in self._writers:
                writer.transport.abort()


@asynccontextmanager
async def following(places: dict[str, str]):
    async def source():
        return dict(places)

    roster = Roster(source)
    task = asyncio.create_task(roster.run())
    try:
        yield roster
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(wanted) -> None:
    async with asyncio.timeout(5):
        while not wanted():
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(module, "EVERY_S", 0.03)
    monkeypatch.setattr(module, "AGAIN_S", 0.03)
    monkeypatch.setattr(module, "SOURCE_S", 0.05)
    monkeypatch.setattr(module, "PATIENCE_S", 0.4)


def test_one_that_comes_back_is_another(quickly):
    async def main():
        places = {}
        async with following(places) as roster:
            async with Fake().there() as port:
                places["one"] = f"127.0.0.1:{port}"
                await until(lambda: roster.there)
                [first] = roster.there
                asking = asyncio.create_task(first.ask("GET", "/", {}))
                await asking
            await until(first.lost.is_set)
            assert roster.there == [] and roster.known == 1
            with pytest.raises(Unreachable):
                await first.ask("GET", "/", {})
            async with Fake().there(port):
                await until(lambda: roster.there)
                assert roster.there != [first] and first.lost.is_set()
                places.clear()
                await until(lambda: not roster.there)

    run(main())


def test_one_that_hangs_is_given_up_and_who_waits_is_told():
    async def main():
        fake = Fake()
        async with fake.there() as port, following({"one": f"127.0.0.1:{port}"}) as roster:
            await until(lambda: roster.there)
            [replica] = roster.there
            fake.hung = True
            with pytest.raises(Unreachable):
                await asyncio.wait_for(replica.ask("POST", "/api/sessions", {}, b"x"), 2)
            await until(lambda: not roster.there)

    run(main())


def test_one_that_closes_gets_nobody_but_is_there():
    async def main():
        fake = Fake()
        async with fake.there() as port, following({"one": f"127.0.0.1:{port}"}) as roster:
            await until(lambda: roster.order())
            fake.ready = 503
            await until(lambda: not roster.order())
            assert len(roster.there) == 1 and not roster.there[0].lost.is_set()

    run(main())


def test_who_has_most_room_comes_first_unless_another_is_wanted():
    async def main():
        async with Fake(1).there() as one, Fake(3).there() as two:
            async with following({"one": f"127.0.0.1:{one}", "two": f"127.0.0.1:{two}"}) as roster:
                await until(lambda: len(roster.order()) == 2)
                for _ in range(4):
                    assert [replica.name for replica in roster.order()] == ["two", "one"]
                [one] = [replica for replica in roster.there if replica.name == "one"]
                assert roster.order(one)[0] is one
                # Of what is under way nobody has told yet.
                roster.order()[0].taking = 3
                assert roster.order()[0] is one

    run(main())


@pytest.mark.parametrize("raw", [b"", b"SSH-2.0\r\n\r\n", b"HTTP/1.1 200 x\r\ncontent-length: 99\r\n\r\nshort"])
def test_answers_that_are_none_are_no_answers(raw):
    async def main():
        fake = Fake()
        fake.raw = raw
        async with fake.there() as port, await Connection.open("127.0.0.1", port, 1) as connection:
            with pytest.raises(Unreachable):
                await connection.ask("GET", "/readyz", {}, b"", 1)

    run(main())


def test_a_server_that_is_none_of_ours_gets_nobody():
    async def main():
        fake, ours = Fake(), Fake()
        fake.raw = b"HTTP/1.1 200 x\r\ncontent-length: 2\r\n\r\n[]"
        async with fake.there() as port, ours.there() as other:
            async with following({"no": f"127.0.0.1:{port}", "yes": f"127.0.0.1:{other}"}) as roster:
                await until(lambda: roster.there and len(fake.asked) > 4)
                assert [replica.name for replica in roster.there] == ["yes"]

    run(main())


def test_nobody_there():
    async def main():
        async with Fake().there() as port:
            pass
        with pytest.raises(Unreachable):
            await Connection.open("127.0.0.1", port, 1)

    run(main())


@pytest.mark.parametrize(
    "words", [["servers=[nowhere]"], ["servers=['a:99999']"], ["replicas=0"], ["gpus=-1"], ["cluster=auto"]]
)
def test_settings_are_checked(words):
    with pytest.raises(ValueError, match=words[0].split("=")[0]):
        config.load(None, words, run="serve_fleet").check_door()


def test_a_replica_is_the_server_at_another_place():
    server = ServeRun(host="0.0.0.0", port=80, token="a-token-hard-to-guess", names=("talk.example.org",), sessions=7)
    replica = FleetRun(server=server).replica("10.0.0.7")
    assert (replica.host, replica.port, replica.names) == ("10.0.0.7", 0, ())
    assert replica.token == server.token and replica.sessions == 7
