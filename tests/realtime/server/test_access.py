"""The gate: every route, by token, host name and origin; headers on every answer; bytes of any kind at the door."""

from __future__ import annotations

import json
import re
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers

from livetalk.realtime.server.access import HEADERS, LOCAL, OPEN, PAGE, Policy, host_name
from livetalk.realtime.server.app import policy_of
from livetalk.realtime.server.protocol import Refused
from livetalk.realtime.server.settings import ServeRun
from tests.realtime.server.viewer import fetch

TOKEN = "a-token-of-many-letters"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def server(request):
    """One server for all tests here that only knock at it."""
    tiny_parts = request.getfixturevalue("tiny_parts")
    from livetalk.streaming.performer import Performer
    from tests.realtime.server.conftest import RUN, running
    from tests.streaming.conftest import TINY, quick

    parts = [tiny_parts[name] for name in ("generator", "vae", "audio", "text")]
    from dataclasses import replace

    with running(quick(Performer(*parts, TINY, (1000.0,))), replace(RUN, token=TOKEN, sessions=8)) as found:
        yield found


def every_route(app):
    """Method and path of each route, filled in with a name that exists nowhere."""
    found = [(method, re.sub(r"{\w+}", "nothing", route.path)) for route in app.routes for method in route.methods]
    assert len(found) >= 9 and ("POST", "/api/sessions") in found
    return found


def test_every_route_asks_for_the_token(server):
    for method, path in [*every_route(server.app), ("GET", "/nowhere"), ("GET", "/docs"), ("GET", "/openapi.json")]:
        body = b"{}" if method == "POST" else None
        public = path in OPEN or path.startswith(PAGE)
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
            status, answered, _ = fetch(server.address, path, method, body, headers)
            assert (status == 401) is not public, (method, path, status)
            assert public or answered["www-authenticate"] == "Bearer"
        status, answered, _ = fetch(server.address, path, method, body, BEARER)
        assert status != 401 and status < 500, (method, path, status)
        for name, value in HEADERS.items():
            assert answered[name.lower()] == value, (method, path)
        assert "server" not in answered


def test_only_what_is_public_is_public(server):
    assert {path for _, path in every_route(server.app) if path in OPEN} == OPEN
    assert "script-src 'self'" in HEADERS["Content-Security-Policy"] and "unsafe" not in str(HEADERS)


def test_probes_are_logged_only_where_they_fail(server, caplog):
    caplog.set_level("INFO", "livetalk.realtime.server.app")
    for path in ("/healthz", "/readyz", "/metrics", "/api/setup"):
        assert fetch(server.address, path, headers=BEARER)[0] == 200
    assert not caplog.records
    assert fetch(server.address, "/metrics")[0] == 401 and fetch(server.address, "/", headers=BEARER)[0] == 200
    desk = server.app.state.desk
    desk.closing = True
    try:
        assert fetch(server.address, "/readyz")[0] == 503
    finally:
        desk.closing = False
    assert [(record.status, record.route) for record in caplog.records] == [(401, "none"), (200, "/"), (503, "/readyz")]


def test_the_page_and_what_it_loads(server):
    status, headers, index = fetch(server.address, "/")
    assert status == 200 and headers["content-type"].startswith("text/html")
    for path in set(re.findall(r'(?:href|src)="(page/[^"]+)"', index.decode())):
        assert fetch(server.address, f"/{path}")[0] == 200, path
    _, _, script = fetch(server.address, "/page/app.js")
    for name in re.findall(r'from "\./([\w.]+)"', script.decode()):
        assert fetch(server.address, f"/page/{name}")[1]["content-type"] == "text/javascript"
    assert not re.search(r"https?://(?!www\.w3\.org)", index.decode() + script.decode()), "something external"
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", index.decode()), "something inline"
    setup = json.loads(fetch(server.address, "/api/setup", headers=BEARER)[2])
    for face in setup["faces"]:
        status, headers, _ = fetch(server.address, f"/{face['picture']}")
        assert status == 200 and headers["content-type"].startswith("image/")
    for path in ("/page/../settings.py", "/page/%2e%2e/settings.py", "/page/faces/..%2f..%2fx", "/page/faces/x"):
        assert fetch(server.address, path)[0] == 404


def test_pages_from_elsewhere_may_change_nothing(server):
    path, body = "/api/sessions", b"{}"
    origins = ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": ""})
    for foreign in (*origins, {"Origin": "http://[evil"}):
        status, _, answer = fetch(server.address, path, "POST", body, BEARER | foreign)
        assert status == 403 and json.loads(answer)["error"] == "foreign_origin", foreign
    own = {"Origin": server.address.rstrip("/"), "Sec-Fetch-Site": "same-origin"}
    assert fetch(server.address, path, "POST", body, BEARER | own)[0] == 400


def test_a_name_that_was_made_to_point_here_is_refused(server):
    assert fetch(server.address, "/", headers={"Host": "evil.example"})[0] == 421
    for name in ("localhost", "localhost:9", "LOCALHOST.", "127.0.0.1:1", "[::1]:80"):
        assert fetch(server.address, "/", headers={"Host": name})[0] == 200, name


def check(policy: Policy, method="GET", path="/api/setup", **headers) -> int:
    try:
        policy.check(method, path, Headers({name.replace("_", "-"): value for name, value in headers.items()}))
    except Refused as refused:
        return refused.status
    return 200


def test_policies():
    own = policy_of(ServeRun())
    assert own.names == LOCAL and check(own, host="localhost:8080") == 200 and check(own, host="a.example") == 421
    proxied = policy_of(ServeRun(token=TOKEN, names=("talk.example.org",)))
    bearer = {"authorization": f"bearer {TOKEN}"}
    assert check(proxied, host="talk.example.org", **bearer) == 200
    assert check(proxied, "POST", host="talk.example.org", origin="https://talk.example.org", **bearer) == 200
    assert check(proxied, host="other.example.org", **bearer) == 421
    public = policy_of(ServeRun(token=TOKEN, host="0.0.0.0"))
    assert public.names is None and check(public, host="anything") == 401
    assert check(public, host="anything", authorization="Bearer \xff\xe9") == 401
    assert check(policy_of(ServeRun(host="::1")), host="[::1]:8080") == 200


@given(st.text(max_size=40))
def test_host_names_of_any_text(host):
    assert isinstance(host_name(host), str)


def still_answers(server) -> bool:
    return fetch(server.address, "/healthz")[0] == 200


@FUZZ
@given(data=st.binary(min_size=1, max_size=3000), shut=st.booleans())
def test_bytes_of_any_kind_at_the_port(server, data, shut):
    host, port = server.address.removeprefix("http://").rstrip("/").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(data)
        if shut:
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(4096)
            assert not answer or answer.split()[1][:1] == b"4"
    assert still_answers(server)


@FUZZ
@given(
    body=st.binary(max_size=2000)
    | st.dictionaries(st.sampled_from(["sdp", "face", "prompt", "x"]), st.text() | st.integers() | st.none()).map(
        lambda found: json.dumps(found).encode()
    ),
    path=st.sampled_from(["/api/sessions", "/api/faces"]),
    kind=st.sampled_from(["image/png", "image/jpeg", "image/webp", "application/json", "", "\x80"]),
)
def test_bodies_of_any_kind(server, body, path, kind):
    status, _, answer = fetch(server.address, path, "POST", body, BEARER | {"Content-Type": kind})
    assert 400 <= status < 500 and set(json.loads(answer)) == {"error", "message"}


def test_bodies_that_are_too_long_or_lie(server):
    host, port = server.address.removeprefix("http://").rstrip("/").split(":")
    head = f"POST /api/sessions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: "
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head.encode() + b"400000\r\n\r\n" + b"a" * 200_000)
        assert b" 413 " in connection.recv(4096)
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head.encode() + b"100\r\n\r\nabc")
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(4096).split()[1:2] in ([], [b"400"])
    assert still_answers(server)


def test_there_are_no_websockets(server):
    wish = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAA"}
    assert fetch(server.address, "/api/setup", headers=wish)[0] == 401
    assert fetch(server.address, "/", headers=wish)[0] == 200


def test_metrics(server):
    fetch(server.address, "/api/setup", headers=BEARER)
    status, headers, text = fetch(server.address, "/metrics", headers=BEARER)
    assert status == 200 and headers["content-type"].startswith("text/plain")
    assert re.search(r'livetalk_http_requests_total{method="GET",route="/api/setup",status="200"} [1-9]', text.decode())
    assert "livetalk_sessions_limit 8.0" in text.decode()
