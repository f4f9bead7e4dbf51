// The microphone: asked for when it is first wanted, let go of when it is turned off.

export class Microphone {
  level = 0; // 0 to 1, of the last moment
  #stream = null;
  #context = null;
  #timer = null;

  get track() {
    return this.#stream?.getAudioTracks()[0] ?? null;
  }

  // Its track. Throws, with a reason for people, where there is none or it is not allowed.
  async on() {
    if (this.track) return this.track;
    if (!navigator.mediaDevices) {
      throw new Error("The microphone works only over HTTPS, or on the server's own machine.");
    }
    const wanted = { echoCancellation: true, noiseSuppression: true, autoGainControl: true };
    try {
      this.#stream = await navigator.mediaDevices.getUserMedia({ audio: wanted });
    } catch (error) {
      const refused = error.name === "NotAllowedError";
      throw new Error(refused ? "The browser does not let this page use the microphone." : "No microphone was found.");
    }
    this.#measure();
    return this.track;
  }

  off() {
    clearInterval(this.#timer);
    this.#stream?.getTracks().forEach((track) => track.stop());
    this.#context?.close();
    this.#stream = this.#context = null;
    this.level = 0;
  }

  #measure() {
    this.#context = new AudioContext();
    const meter = this.#context.createAnalyser();
    meter.fftSize = 1024;
    this.#context.createMediaStreamSource(this.#stream).connect(meter);
    const samples = new Float32Array(meter.fftSize);
    this.#timer = setInterval(() => {
      meter.getFloatTimeDomainData(samples);
      const power = samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length;
      // From -60 dB to 0 dB.
      this.level = Math.max(0, Math.min(1, 1 + Math.log10(power + 1e-12) / 6));
    }, 60);
  }
}
