"""The text encoder: UMT5 (arXiv:2304.09151) from transformers, under the names of the published Wan2.1 file.

Shapes: B prompts, L tokens (padded to text_len), D features. Outputs at padding positions are zero.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

PAD, END = "<pad>", "</s>"
END_ID = 1


@dataclass(frozen=True)
class TextConfig:
    """Sizes. attention: width of all heads together; cleaning: "published" (ftfy, html, white space) or "plain"
    (white space and lower case)."""

    vocab: int = 256_384
    dim: int = 4096
    attention: int = 4096
    ffn: int = 10_240
    heads: int = 64
    layers: int = 24
    buckets: int = 32
    text_len: int = 512
    cleaning: str = "published"

    def __post_init__(self) -> None:
        if self.attention % self.heads:
            raise ValueError(f"attention width {self.attention} does not split into {self.heads} heads")
        if self.cleaning not in ("published", "plain"):
            raise ValueError(f"cleaning {self.cleaning!r}: choose published or plain")

    @staticmethod
    def umt5_xxl() -> TextConfig:
        return TextConfig()

    @staticmethod
    def nano() -> TextConfig:
        return TextConfig(
            vocab=512, dim=64, attention=64, ffn=128, heads=4, layers=2, text_len=48, cleaning="plain"
        )

    @staticmethod
    def from_published(settings: dict) -> TextConfig:
        """From the argument names of the published code. Raises ValueError for what this model does not have."""
        if settings["shared_pos"] or settings["dropout"]:
            raise ValueError(f"shared positions or dropout are not supported: {settings}")
        return TextConfig(
            vocab=settings["vocab"],
            dim=settings["dim"],
            attention=settings["dim_attn"],
            ffn=settings["dim_ffn"],
            heads=settings["num_heads"],
            layers=settings["num_layers"],
            buckets=settings["num_buckets"],
        )


class TextEncoder(nn.Module):
    """tokenizer: a tokenizer.json file, or a folder that transformers' AutoTokenizer reads; None where only ids come."""

    def __init__(self, config: TextConfig, tokenizer: str | Path | None = None) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = None if tokenizer is None else load_tokenizer(tokenizer)
        self.model = UMT5EncoderModel(
            UMT5Config(
                vocab_size=config.vocab,
                d_model=config.dim,
                d_kv=config.attention // config.heads,
                d_ff=config.ffn,
                num_layers=config.layers,
                num_heads=config.heads,
                relative_attention_num_buckets=config.buckets,
                relative_attention_max_distance=128,
                dropout_rate=0.0,
                layer_norm_epsilon=1e-6,
                feed_forward_proj="gated-gelu",
                use_cache=False,
            )
        )

    def features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids and mask [B, L] (1 on tokens, 0 on padding) to features [B, L, D]. Differentiable."""
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return hidden * mask[..., None].to(hidden)

    def tokenise(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask int64 [B, text_len] on the CPU: cleaned, cut to text_len with </s> at the end, padded."""
        if self.tokenizer is None:
            raise ValueError("this text encoder was made without a tokenizer: give its file or folder")
        rows = [self.tokenizer(clean(prompt, self.config.cleaning)) for prompt in prompts]
        ids = torch.zeros(len(rows), self.config.text_len, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            row = [*row[: self.config.text_len - 1], END_ID]
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        return ids, mask

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        """Features [B, text_len, D] of texts."""
        device = next(self.parameters()).device
        ids, mask = self.tokenise(prompts)
        return self.features(ids.to(device), mask.to(device))

    def load_published(self, weights: dict[str, Tensor]) -> None:
        """Loads weights under their published names, strictly."""
        self.load_state_dict({ours: value for name, value in weights.items() for ours in our_names(name)}, strict=True)


def clean(text: str, cleaning: str) -> str:
    """What the tokenizer sees of a prompt."""
    if cleaning == "published":
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    text = re.sub(r"\s+", " ", text).strip()
    return text if cleaning == "published" else text.lower()


_LAYER = {
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm1": "layer.0.layer_norm",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}


def our_names(published: str) -> tuple[str, ...]:
    """Our parameter names for a published one: two for the token table, which transformers lists twice."""
    if published == "token_embedding.weight":
        return "model.shared.weight", "model.encoder.embed_tokens.weight"
    if published == "norm.weight":
        return ("model.encoder.final_layer_norm.weight",)
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)\.weight", published)
    if match is None or match[2] not in _LAYER:
        return (published,)
    return (f"model.encoder.block.{match[1]}.{_LAYER[match[2]]}.weight",)


def published_names(layers: int) -> Iterable[str]:
    """All published names of an encoder of `layers` layers."""
    yield "token_embedding.weight"
    for layer in range(layers):
        yield from (f"blocks.{layer}.{name}.weight" for name in _LAYER)
    yield "norm.weight"


def to_published(weights: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Our state under its published names."""
    return {name: weights[our_names(name)[0]] for name in published_names(layers)}


# Tokenizers


def load_tokenizer(path: str | Path):
    """A callable text -> list of ids, without the end token. Raises ValueError if there is no tokenizer at `path`."""
    path = Path(path)
    if path.is_file():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(path))
        return lambda text: tokenizer.encode(text).ids
    if not path.is_dir():
        raise ValueError(f"no tokenizer at {path}: get the weights with bash scripts/download.sh")
    from transformers import AutoTokenizer

    folder = AutoTokenizer.from_pretrained(str(path))
    return lambda text: folder(text, add_special_tokens=False)["input_ids"]


def train_tokenizer(texts: Iterable[str], vocab: int):
    """A small tokenizer (tokenizers.Tokenizer): lower case, byte-pair merges over bytes, so that any text has ids."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
