// What the page asks of the server over HTTP.

let token = sessionStorage.getItem("token") ?? "";

// A refusal, with its code and a reason for people.
export class Refusal extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

export function remember(given) {
  token = given;
  sessionStorage.setItem("token", given);
}

function known(headers = {}) {
  return token ? { ...headers, Authorization: `Bearer ${token}` } : headers;
}

export async function ask(path, method = "GET", body = undefined, type = "application/json", keepalive = false) {
  const headers = known(body === undefined ? {} : { "Content-Type": type });
  let answer;
  try {
    answer = await fetch(path, { method, headers, body, keepalive, cache: "no-store" });
  } catch {
    throw new Refusal("unreachable", "The server does not answer.");
  }
  if (answer.status === 204) return null;
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refusal(content.error ?? "failed", sentence(content.message ?? `The server said ${answer.status}.`));
  return content;
}

// Reads an event stream and returns the data of its first event `wanted`, as JSON; null where the server has no such
// stream. A browser's own EventSource cannot say a token. Throws where the stream ends or breaks without the event.
export async function awaited(path, wanted, signal) {
  const answer = await fetch(path, { headers: known({ Accept: "text/event-stream" }), signal, cache: "no-store" });
  if (!answer.ok) return null;
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("the stream ended");
    const events = (text + value).split("\n\n");
    text = events.pop();
    for (const lines of events.map((event) => event.split("\n"))) {
      if (lines.includes(`event: ${wanted}`)) return JSON.parse(lines.find((line) => line.startsWith("data: ")).slice(6));
    }
  }
}

// The server's reasons begin in the middle of a sentence.
export function sentence(text) {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}
