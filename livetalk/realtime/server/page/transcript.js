// What was said: as a list, as a caption over the picture, and sentence by sentence for screen readers.

const CAPTION_LETTERS = 80;
const CAPTION_MS = 4000;
const MOST_LINES = 200;

export class Transcript {
  #log;
  #caption;
  #spoken;
  #answers = new Map(); // turn -> {line, text, read}
  #timer = null;

  constructor(log, caption, spoken) {
    this.#log = log;
    this.#caption = caption;
    this.#spoken = spoken;
  }

  you(text) {
    this.#add("you", text, "You: ");
  }

  note(text) {
    this.#add("note", text, "");
    this.#spoken.textContent = text;
  }

  // The next piece of an answer.
  piece(turn, text) {
    const answer = this.#answers.get(turn) ?? { line: this.#add("avatar", "", "Avatar: "), text: "", read: 0 };
    this.#answers.set(turn, answer);
    this.#show(answer, answer.text + text);
    const unread = answer.text.slice(answer.read);
    if (/[.!?…]\s*$/.test(unread)) this.#read(answer);
    clearTimeout(this.#timer);
    this.#caption.textContent = lastWords(answer.text);
  }

  // An answer is over; what nobody heard is struck out by leaving it away.
  ended(turn, complete) {
    const answer = this.#answers.get(turn);
    if (!answer) return;
    if (!complete) answer.line.classList.add("cut");
    this.#read(answer);
    this.#timer = setTimeout(() => (this.#caption.textContent = ""), complete ? CAPTION_MS : 0);
  }

  heard(turn, text) {
    const answer = this.#answers.get(turn);
    if (answer) this.#show(answer, text || "…");
  }

  // A new session counts its turns anew.
  forgetTurns() {
    this.#answers.clear();
    this.#caption.textContent = "";
  }

  #add(kind, text, who) {
    const near = this.#log.scrollHeight - this.#log.scrollTop - this.#log.clientHeight < 60;
    const line = document.createElement("li");
    line.className = kind;
    const name = document.createElement("span");
    name.className = "hidden";
    name.textContent = who;
    line.append(name, text);
    this.#log.append(line);
    while (this.#log.children.length > MOST_LINES) this.#log.firstChild.remove();
    if (near) this.#log.scrollTop = this.#log.scrollHeight;
    return line;
  }

  #show(answer, text) {
    answer.text = text;
    answer.line.lastChild.textContent = text.trim();
    this.#log.scrollTop = this.#log.scrollHeight;
  }

  #read(answer) {
    const unread = answer.text.slice(answer.read).trim();
    answer.read = answer.text.length;
    if (unread) this.#spoken.textContent = unread;
  }
}

// As many of the last words as a caption holds.
function lastWords(text) {
  const whole = text.trim();
  return whole.length > CAPTION_LETTERS ? `… ${whole.slice(-CAPTION_LETTERS).replace(/^\S*\s/, "")}` : whole;
}
