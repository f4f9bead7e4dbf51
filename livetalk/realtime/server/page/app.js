// The page: buttons and figures on one side, a session on the other.

import { Looks } from "./looks.js";
import { Microphone } from "./microphone.js";
import { ask, remember, sentence } from "./server.js";
import { Session } from "./session.js";
import { Transcript } from "./transcript.js";

const $ = (id) => document.getElementById(id);
const TRIES = 5;
const STATES = { idle: "Idle", listening: "Listening", thinking: "Thinking", speaking: "Speaking" };

const transcript = new Transcript($("log"), $("caption"), $("spoken"));
const microphone = new Microphone();
const looks = new Looks($("faces"), $("upload"), document.querySelector(".frame"));
let setup = null;
let session = null;
let tries = 0;
let lived = false; // whether one of the tries since Start was pressed became a session
let retry = null;
let prompted = "";

// What is shown

function phase(name) {
  document.body.dataset.phase = name;
  const live = name === "live";
  $("leave").hidden = name === "start";
  // While another try is waited for, it can be had at once.
  $("start").hidden = name !== "start" && name !== "waiting";
  $("start").querySelector("span").textContent = name === "waiting" ? "Start again" : "Start talking";
  for (const input of document.querySelectorAll("[name=microphone]")) input.disabled = !live;
  if (!live) state("idle");
}

function state(name) {
  document.body.dataset.state = name;
  $("state").textContent = STATES[name];
  $("interrupt").disabled = name !== "speaking" && name !== "thinking";
  if (document.body.dataset.phase === "live") $("status").textContent = `Connected, ${name}`;
}

function tell(text) {
  $("alert").textContent = text;
  $("alert").hidden = !text;
}

// Sessions

async function prepare() {
  try {
    setup = await ask("api/setup");
  } catch (refusal) {
    $("door").hidden = refusal.code !== "unauthorised";
    $("start").disabled = true;
    tell(refusal.code === "unauthorised" ? "" : refusal.message);
    return;
  }
  $("door").hidden = true;
  $("start").disabled = false;
  tell("");
  looks.show(setup);
  if (setup.talker === "echo") {
    $("text").placeholder = "Speak: the avatar repeats your voice";
    $("text").disabled = $("send").disabled = true;
  }
  $("text").maxLength = setup.most_letters;
  $("prompt").maxLength = setup.most_prompt;
  $("prompt").value = prompted = setup.prompts[0];
  $("prompts").replaceChildren(...setup.prompts.map((value) => Object.assign(document.createElement("option"), { value })));
}

function start() {
  clearTimeout(retry);
  tell("");
  phase("joining");
  $("status").textContent = "Connecting …";
  transcript.forgetTurns();
  session = new Session();
  session.addEventListener("open", ({ detail }) => joined(detail));
  session.addEventListener("message", ({ detail }) => told(detail));
  session.addEventListener("over", ({ detail }) => over(detail));
  prompted = $("prompt").value;
  session.open(setup, looks.face, prompted);
}

async function joined(media) {
  if (tries && lived) transcript.note("A new session: the avatar knows nothing of the one before.");
  tries = 0;
  lived = true;
  const video = $("video");
  video.srcObject = media;
  await video.play().catch(() => tell("The browser does not play sound yet: press a key or click into the page."));
  phase("live");
  if (matchMedia("(max-width: 860px)").matches) $("looks").open = false;
  state("idle");
  const chosen = document.querySelector("[name=microphone]:checked").value;
  if (chosen !== "off") listen(chosen);
  $("text").focus({ preventScroll: true });
}

function over({ reason, again, code }) {
  session = null;
  $("video").srcObject = null;
  for (const id of ["fps", "lead", "first", "trip"]) $(id).textContent = "–";
  if (code === "unknown_face") looks.reset();
  if (again && tries < TRIES) {
    const wait = Math.min(2 ** tries++, 10);
    phase("waiting");
    $("status").textContent = "Connection lost";
    tell(`${reason} Trying again in ${wait} s.`);
    retry = setTimeout(start, 1000 * wait);
    return;
  }
  lived = false;
  microphone.off();
  document.querySelector("[name=microphone][value=off]").checked = true;
  showMicrophone("off");
  phase("start");
  $("status").textContent = "Not connected";
  tell(reason);
  if (reason) $("start").focus({ preventScroll: true });
}

function leave() {
  clearTimeout(retry);
  tries = TRIES;
  if (session) session.leave();
  else over({ reason: "", again: false, code: "left" });
  tries = 0;
}

function told(message) {
  if (message.type === "hello" || message.type === "state") state(message.state);
  else if (message.type === "caption" && message.who === "you") transcript.you(message.text);
  else if (message.type === "caption") transcript.piece(message.turn, message.text);
  else if (message.type === "answer" && !message.began) transcript.ended(message.turn, message.complete);
  else if (message.type === "heard") transcript.heard(message.turn, message.text);
  else if (message.type === "problem") tell(sentence(message.message));
  else if (message.type === "figures") figures(message);
  else if (message.type === "done" && message.what === "face") transcript.note("Another face.");
}

let decoded = null;

async function figures(message) {
  if (!session) return;
  const report = [...(await session.stats()).values()].find(({ type, kind }) => type === "inbound-rtp" && kind === "video");
  if (!session || !report) return;
  const now = { at: report.timestamp, frames: report.framesDecoded ?? 0 };
  if (decoded && now.at > decoded.at && now.frames >= decoded.frames) {
    $("fps").textContent = ((1000 * (now.frames - decoded.frames)) / (now.at - decoded.at)).toFixed(1);
  }
  decoded = now;
  $("lead").textContent = `${message.lead_ms} ms`;
  if (session.trip !== null) $("trip").textContent = `${Math.max(1, Math.round(session.trip))} ms`;
  const stages = Object.values(message.stages);
  if (stages.length) {
    const first = stages.reduce((sum, stage) => sum + stage, session.trip ?? 0);
    $("first").textContent = `${(first / 1000).toFixed(2)} s`;
    $("first").title = Object.entries(message.stages).map(([name, ms]) => `${name} ${ms} ms`).join(", ");
  }
}

// What one does

function say() {
  const text = $("text").value.trim();
  if (!text) return;
  if (!session?.send("say", { text })) return tell("Press Start first: nobody listens yet.");
  $("text").value = "";
  tell("");
}

function showMicrophone(mode) {
  $("hold").hidden = mode !== "push";
  $("level").hidden = mode === "off";
}

async function listen(mode) {
  tell("");
  try {
    if (mode === "off") {
      await session?.speakWith(null);
      microphone.off();
    } else {
      await session?.speakWith(await microphone.on());
    }
    session?.send("microphone", { mode });
    showMicrophone(mode);
  } catch (error) {
    document.querySelector("[name=microphone][value=off]").checked = true;
    session?.send("microphone", { mode: "off" });
    showMicrophone("off");
    tell(error.message);
  }
}

function hold(on) {
  if ($("hold").ariaPressed === String(on)) return;
  $("hold").ariaPressed = String(on);
  session?.send("talk", { on });
}

$("start").addEventListener("click", start);
$("leave").addEventListener("click", leave);
$("interrupt").addEventListener("click", () => session?.send("interrupt"));
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  say();
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    say();
  }
});
$("door").addEventListener("submit", (event) => {
  event.preventDefault();
  remember($("token").value);
  prepare().then(() => !$("door").hidden && tell("That is not the token."));
});
$("prompt").addEventListener("change", () => {
  const text = $("prompt").value.trim();
  if (text && text !== prompted && session?.send("prompt", { text })) prompted = text;
});
for (const input of document.querySelectorAll("[name=microphone]")) {
  input.addEventListener("change", () => listen(input.value));
}

$("hold").ariaPressed = "false";
$("hold").addEventListener("pointerdown", (event) => {
  $("hold").setPointerCapture(event.pointerId);
  hold(true);
});
for (const kind of ["pointerup", "pointercancel", "blur"]) $("hold").addEventListener(kind, () => hold(false));
$("hold").addEventListener("keydown", (event) => {
  if (event.key !== " " && event.key !== "Enter") return;
  event.preventDefault();
  hold(true);
});
$("hold").addEventListener("keyup", () => hold(false));
$("hold").addEventListener("contextmenu", (event) => event.preventDefault());

addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("interrupt").disabled) session?.send("interrupt");
});
addEventListener("pagehide", () => session?.leave());
setInterval(() => !$("level").hidden && ($("level").value = microphone.level), 100);

looks.failed = tell;
looks.changed = () => {
  $("still").src = looks.picture;
  tell("");
  session?.send("face", { face: looks.face });
};

// For whoever looks into a problem with the browser's console.
globalThis.livetalk = { stats: () => session?.stats() };

phase("start");
prepare();
