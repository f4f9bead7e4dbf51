"""The router in front of two real servers: who goes where, what is said when one is full or gone."""

import asyncio
import io
import json

import pytest
from PIL import Image

from tests.realtime.server.fleet.conftest import Watching, routing, there, until
from tests.realtime.server.viewer import Viewer, fetch

JSON = {"Content-Type": "application/json"}


def picture() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 120, 90)).save(data, "PNG")
    return data.getvalue()


def said(answer) -> tuple[int, str]:
    """Status and code of an answer."""
    status, _, body = answer
    return status, json.loads(body).get("error", "")


def sessions(servers) -> list[int]:
    return [server.sessions for server in servers]


def test_sessions_spread_stay_and_end(pair):
    """Two viewers come to two servers, talk over connections of their own, and leave by the router."""

    async def talk(address, servers):
        async with Viewer(address) as first, Viewer(address) as second:
            assert (await first.open())[0] == 201
            assert sum(sessions(servers)) == 1
            assert (await second.open())[0] == 201
            assert sessions(servers) == [1, 1]
            for viewer in (first, second):
                assert (await viewer.event(lambda event: True))["session"] == viewer.session
                viewer.send("say", text="Please speak.")
                await viewer.event(lambda event: event["type"] == "answer")
            for viewer in (first, second):
                answer = await asyncio.to_thread(fetch, address, f"/api/sessions/{viewer.session}", "DELETE")
                assert answer[0] == 204
                await viewer.event(lambda event: event["type"] == "ended")
            await asyncio.to_thread(until, lambda: sessions(servers) == [0, 0])
            assert said(await asyncio.to_thread(fetch, address, f"/api/sessions/{first.session}", "DELETE")) == (
                404,
                "unknown_session",
            )

    with pair() as (one, two):
        with routing({"one": one.at, "two": two.at}) as address:
            setup = json.loads(fetch(address, "/api/setup")[2])
            assert setup["free"] == setup["sessions"] == 4 and setup["watch"] is True
            assert b"<html" in fetch(address, "/")[2] and fetch(address, "/page/session.js")[0] == 200
            asyncio.run(talk(address, (one, two)))


def test_a_session_begins_where_its_face_is_and_full_is_full(pair):
    """Also when the other server has more room; with all places taken the next viewer is told so."""

    async def open_all(address, faces):
        viewers = []
        try:
            for face in faces:
                viewers.append(Viewer(address))
                viewers[-1].answer = await viewers[-1].open(face)
            return [(status, answer.get("error", "")) for status, answer in (viewer.answer for viewer in viewers)]
        finally:
            for viewer in viewers:
                await viewer.close()

    with pair(sessions=1) as (one, two):
        with routing({"one": one.at, "two": two.at}) as address:
            status, headers, body = fetch(address, "/api/faces", "POST", picture(), {"Content-Type": "image/png"})
            assert (
                status == 201 and "livetalk_replica=" in headers["set-cookie"] and "HttpOnly" in headers["set-cookie"]
            )
            face = json.loads(body)["face"]
            opened = asyncio.run(open_all(address, [face, face, "robin", "robin"]))
            # The second finds its face's server full; the third goes to the other; then there is no place at all.
            assert opened == [(201, ""), (503, "full"), (201, ""), (503, "full")]


def test_a_cookie_keeps_a_viewer_where_it_was(pair):
    with pair(sessions=4) as (one, two):
        with routing({"one": one.at, "two": two.at}) as address:
            for name, server in (("one", one), ("two", two), ("one", one)):
                before = len(server.studio.faces._uploaded)
                headers = {"Content-Type": "image/png", "Cookie": f"livetalk_replica={name}"}
                assert fetch(address, "/api/faces", "POST", picture(), headers)[0] == 201
                assert len(server.studio.faces._uploaded) == before + 1


def test_a_server_that_goes_is_missed_and_one_that_comes_is_found(serve):
    replicas = {}

    async def opened(address) -> str:
        async with Viewer(address) as viewer:
            status, answer = await viewer.open()
            assert status == 201
            return answer["session"]

    with routing(replicas, wait=False) as address:
        assert said(fetch(address, "/api/setup")) == (503, "no_server")
        assert said(fetch(address, "/api/sessions", "POST", b"{}", JSON)) == (503, "no_server")
        assert fetch(address, "/readyz")[0] == 503 and fetch(address, "/healthz")[0] == 200
        with serve() as one:
            replicas["one"] = one.at
            until(lambda: there(address) == 1)
            session = asyncio.run(opened(address))
            watching = Watching(address, session)
            assert not watching.lost
        until(lambda: watching.lost, 2)
        watching.close()
        assert watching.lost[0][1]["error"] == "server_lost"
        assert said(fetch(address, f"/api/sessions/{session}", "DELETE")) == (410, "server_lost")
        assert said(fetch(address, "/api/sessions/nobody/watch")) == (404, "unknown_session")
        with serve() as two:
            replicas["two"] = two.at
            until(lambda: there(address) == 1)
            asyncio.run(opened(address))


def test_a_session_that_the_router_does_not_know_is_ended(pair):
    """It was begun before the router was started anew."""

    async def end(direct, address):
        async with Viewer(direct) as viewer:
            assert (await viewer.open())[0] == 201
            await viewer.event(lambda event: True)
            answer = await asyncio.to_thread(fetch, address, f"/api/sessions/{viewer.session}", "DELETE")
            assert answer[0] == 204
            assert (await viewer.event(lambda event: event["type"] == "ended"))["reason"] == "left"

    with pair() as (one, two):
        with routing({"one": one.at, "two": two.at}) as address:
            asyncio.run(end(two.address, address))


def test_the_token_is_asked_for_at_every_route(serve):
    token = "a-token-hard-to-guess"
    with serve(token=token) as one:
        with routing({"one": one.at}, token) as address:
            given = {"Authorization": f"Bearer {token}"}
            for path, method in [("/api/setup", "GET"), ("/metrics", "GET"), ("/api/sessions/x/watch", "GET")] + [
                ("/api/faces", "POST"),
                ("/api/sessions", "POST"),
                ("/api/sessions/x", "DELETE"),
            ]:
                body = b"{}" if method == "POST" else None
                assert said(fetch(address, path, method, body)) == (401, "unauthorised"), path
            assert fetch(address, "/api/setup", headers=given)[0] == 200 and fetch(address, "/")[0] == 200
            foreign = given | {"Origin": "http://elsewhere.example"}
            assert said(fetch(address, "/api/sessions", "POST", b"{}", foreign)) == (403, "foreign_origin")
            assert said(fetch(address, "/", headers={"Host": "elsewhere.example"})) == (421, "unknown_host")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"face": 3, "sdp": "x"}', b"\xff" * 99, b"[" * 50_000])
def test_requests_that_are_none_are_refused_by_the_server(serve, body):
    with serve() as one:
        with routing({"one": one.at}) as address:
            status, code = said(fetch(address, "/api/sessions", "POST", body, JSON))
            assert 400 <= status < 500 and code
            too_long = fetch(address, "/api/faces", "POST", b"x" * 8_000_001, {"Content-Type": "image/png"})
            assert said(too_long) == (413, "too_long")
