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

export async function ask(path, method = "GET", body = undefined, type = "application/json", keepalive = false) {
  const headers = body === undefined ? {} : { "Content-Type": type };
  if (token) headers.Authorization = `Bearer ${token}`;
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

// The server's reasons begin in the middle of a sentence.
export function sentence(text) {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}
