// The choice of a face and of a manner, and pictures of one's own.

import { ask } from "./server.js";

const OWN = "Your picture";

export class Looks {
  face = "";
  picture = ""; // address of what the face looks like
  changed = () => {}; // called when another face was chosen
  failed = () => {}; // called with a reason for people
  #faces;
  #upload;
  #setup;

  constructor(faces, upload, stage) {
    this.#faces = faces;
    this.#upload = upload;
    upload.addEventListener("change", () => upload.files[0] && this.#send(upload.files[0]));
    stage.addEventListener("dragover", (event) => event.preventDefault());
    stage.addEventListener("drop", (event) => {
      event.preventDefault();
      if (event.dataTransfer.files[0]) this.#send(event.dataTransfer.files[0]);
    });
  }

  show(setup) {
    this.#setup = setup;
    this.#faces.replaceChildren();
    setup.faces.forEach((face) => this.#add(face.face, face.label, face.picture));
    this.#faces.querySelector("input").click();
  }

  // Where the server no longer knows an uploaded face (it keeps them for a while only).
  reset() {
    this.#faces.querySelector("input").click();
  }

  #add(face, label, picture) {
    const choice = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "face", value: face });
    const image = Object.assign(document.createElement("img"), { src: picture, alt: label, width: 58, height: 58 });
    choice.title = label;
    choice.append(input, image);
    input.addEventListener("change", () => {
      this.face = face;
      this.picture = picture;
      this.changed();
    });
    this.#faces.append(choice);
    return input;
  }

  async #send(file) {
    this.#upload.value = "";
    const { types, bytes } = this.#setup.upload;
    if (!types.includes(file.type)) return this.failed("A face is a JPEG, PNG or WebP picture.");
    if (file.size > bytes) return this.failed(`The picture is larger than ${Math.floor(bytes / 1e6)} MB.`);
    try {
      const { face } = await ask("api/faces", "POST", file, file.type);
      this.#faces.querySelector(`img[alt="${OWN}"]`)?.parentElement.remove();
      this.#add(face, OWN, URL.createObjectURL(file)).click();
    } catch (refusal) {
      this.failed(refusal.message);
    }
  }
}
