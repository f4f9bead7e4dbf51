// One session: a WebRTC connection for picture, sound and voice, and its channel for messages.
//
// Events: "open", with the media; "message", a message of the server (see docs/server.md); "over", with why, and whether
// it is worth trying again. "over" comes once, and last.

import { ask, awaited, sentence } from "./server.js";

const GATHERING_MS = 2000; // for addresses of this machine; those that are not found by then are not needed
const OPENING_MS = 20000;
const LOST_MS = 6000; // without a packet, until the connection counts as lost
const PING_MS = 2000;
const AGAIN_MS = 2000; // until a stream that tells of a lost server, and broke, is asked for again
const NOWHERE =
  "This browser offers no address at which picture and sound could arrive. Without any network, Chromium does so only " +
  "when it is started with --allow-loopback-in-peer-connection.";

export class Session extends EventTarget {
  trip = null; // milliseconds to the server and back
  #connection = null;
  #channel = null;
  #voice = null; // where the microphone's sound goes
  #name = null;
  #timers = [];
  #lost = null;
  #pings = new Map();
  #over = false;
  #watching = new AbortController();

  // watch: whether the server tells when the one that this session is on is gone.
  async open({ ice_servers: servers, watch = false }, face, prompt) {
    const connection = new RTCPeerConnection({ iceServers: servers, bundlePolicy: "max-bundle" });
    this.#connection = connection;
    const media = new MediaStream();
    connection.addTransceiver("video", { direction: "recvonly" });
    this.#voice = connection.addTransceiver("audio", { direction: "sendrecv" }).sender;
    connection.ontrack = ({ track }) => media.addTrack(track);
    connection.onconnectionstatechange = () => this.#changed(connection.connectionState);
    this.#channel = connection.createDataChannel("control");
    this.#channel.onopen = () => this.#opened(media);
    this.#channel.onmessage = ({ data }) => this.#told(JSON.parse(data));
    this.#channel.onclose = () => this.#end("The connection was lost.", true);
    this.#timers.push(setTimeout(() => this.#end("No connection came about.", true), OPENING_MS));
    try {
      await connection.setLocalDescription();
      await gathered(connection);
      if (!/^a=candidate:/m.test(connection.localDescription.sdp)) throw new Error(NOWHERE);
      const wish = { sdp: connection.localDescription.sdp, face, prompt };
      const answer = await ask("api/sessions", "POST", JSON.stringify(wish));
      this.#name = answer.session;
      if (this.#over) return this.leave();
      if (watch) this.#watch();
      await connection.setRemoteDescription({ type: answer.type, sdp: answer.sdp });
    } catch (refusal) {
      this.#end(refusal.message, refusal.code === "unreachable", refusal.code);
    }
  }

  send(type, fields = {}) {
    if (this.#channel?.readyState !== "open") return false;
    this.#channel.send(JSON.stringify({ type, ...fields }));
    return true;
  }

  async speakWith(track) {
    await this.#voice?.replaceTrack(track);
  }

  stats() {
    return this.#connection.getStats();
  }

  // Ends it, also while the page is being closed, when only this kind of request still gets out.
  leave() {
    if (this.#name) ask(`api/sessions/${this.#name}`, "DELETE", undefined, "", true).catch(() => {});
    this.#end("", false, "left");
  }

  #opened(media) {
    clearTimeout(this.#timers.shift());
    let number = 0;
    const ping = () => {
      this.#pings.set(++number, performance.now());
      if (this.#pings.size > 20) this.#pings.clear();
      this.send("ping", { id: number });
    };
    this.#timers.push(setInterval(ping, PING_MS));
    ping();
    this.dispatchEvent(new CustomEvent("open", { detail: media }));
  }

  #told(message) {
    if (message.type === "pong") {
      const sent = this.#pings.get(message.id);
      if (sent !== undefined) this.trip = performance.now() - sent;
      this.#pings.delete(message.id);
    } else if (message.type === "ended") {
      this.#end(`The session ended: ${message.message}.`, message.reason === "stuck", message.reason);
    } else {
      this.dispatchEvent(new CustomEvent("message", { detail: message }));
    }
  }

  // Behind a router, which misses a server that dies long before this connection does. The router itself may go away
  // meanwhile: picture and sound do not need it.
  async #watch() {
    const { signal } = this.#watching;
    while (!this.#over) {
      try {
        const lost = await awaited(`api/sessions/${this.#name}/watch`, "lost", signal);
        if (lost) this.#end(lost.message, true, lost.error);
        return;
      } catch {
        await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
      }
    }
  }

  #changed(state) {
    clearTimeout(this.#lost);
    if (state === "disconnected") this.#lost = setTimeout(() => this.#end("The connection was lost.", true), LOST_MS);
    if (state === "failed") this.#end("The connection was lost.", true);
  }

  #end(reason, again, code = "lost") {
    if (this.#over) return;
    this.#over = true;
    this.#watching.abort();
    clearTimeout(this.#lost);
    this.#timers.forEach(clearTimeout); // which clears intervals, too
    this.#connection?.close();
    this.dispatchEvent(new CustomEvent("over", { detail: { reason: reason && sentence(reason), again, code } }));
  }
}

function gathered(connection) {
  if (connection.iceGatheringState === "complete") return Promise.resolve();
  return new Promise((resolve) => {
    const done = () => connection.iceGatheringState === "complete" && resolve();
    connection.addEventListener("icegatheringstatechange", done);
    setTimeout(resolve, GATHERING_MS);
  });
}
