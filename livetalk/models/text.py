"""Text encoder: the encoder half of UMT5 (arXiv 2304.09151) as Wan2.1 uses it, and the tokenizers.

The network is transformers' own; this file builds it from sizes, translates the published parameter names and cleans
and tokenizes prompts. Shapes: B batch, L text positions (config.length), D width of a feature.
"""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from livetalk.checks import at_least

log = logging.getLogger(__name__)

PAD, END = "<pad>", "</s>"


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the encoder. length: positions a prompt is padded or cut to. fix_text: repair broken Unicode (ftfy)."""

    dim: int = 4096
    heads: int = 64
    head_dim: int = 64
    ffn: int = 10240
    layers: int = 24
    vocab: int = 256384
    buckets: int = 32
    max_distance: int = 128
    length: int = 512
    fix_text: bool = True

    def __post_init__(self) -> None:
        at_least(1, self, "dim", "heads", "head_dim", "ffn", "layers", "vocab", "buckets", "max_distance", "length")

    @classmethod
    def umt5_xxl(cls) -> TextConfig:
        """google/umt5-xxl, 5.68 B parameters."""
        return cls()

    @classmethod
    def nano(cls) -> TextConfig:
        """The nano family's encoder: 2 layers of 64, 128 k parameters."""
        return cls(dim=64, heads=4, head_dim=16, ffn=160, layers=2, vocab=512, length=48, fix_text=False)

    @classmethod
    def from_published(cls, settings: dict) -> TextConfig:
        """From the published code's argument names. Raises ValueError for what this model does not have."""
        if settings["shared_pos"] or settings["dropout"]:
            raise ValueError(f"shared positions and dropout are not supported: {settings}")
        return cls(
            dim=settings["dim"],
            heads=settings["num_heads"],
            head_dim=settings["dim_attn"] // settings["num_heads"],
            ffn=settings["dim_ffn"],
            layers=settings["num_layers"],
            vocab=settings["vocab"],
            buckets=settings["num_buckets"],
        )


class Tokenize(Protocol):
    """Cleaned texts and L -> ids [B, L] int64, 0 beyond the end, and mask [B, L] bool, True on tokens."""

    def __call__(self, texts: list[str], length: int) -> tuple[Tensor, Tensor]: ...


class TextEncoder(nn.Module):
    """UMT5 encoder; parameters are those of transformers' encoder stack under `encoder.`."""

    def __init__(self, config: TextConfig, tokenizer: Tokenize | None = None):
        super().__init__()
        self.config = config
        # The stack alone: its embedding is the only copy, so nothing is tied and every parameter has one name.
        self.encoder = UMT5EncoderModel(_transformers_config(config)).encoder
        self.tokenizer = tokenizer

    def load_published(self, weights: dict[str, Tensor]) -> None:
        """Loads weights under the names of a published file, strictly."""
        self.load_state_dict({ours: weights[name] for ours, name in published_names(weights).items()}, strict=True)

    def tokens(self, texts: list[str], length: int = 0) -> tuple[Tensor, Tensor]:
        """Cleans and tokenizes: ids and mask [B, L] on the CPU. Texts longer than L, by default config.length, are
        cut, keeping the end mark."""
        assert self.tokenizer is not None, "this TextEncoder was built without a tokenizer"
        return self.tokenizer([clean(text, self.config.fix_text) for text in texts], length or self.config.length)

    def features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids, mask [B, L] -> features [B, L, D]. Padding is not attended to, and its features are zero."""
        mask = mask.bool()
        hidden = self.encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return hidden * mask[..., None]

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Tensor:
        """Prompts -> features [B, L, D], padding zeroed, on the encoder's device. Warns of one that is cut.

        Only as many positions as the longest prompt has are computed: padding never reaches a token.
        """
        ids, mask = self.tokens(texts)
        self._tell_of_cuts([text for text, full in zip(texts, mask.all(dim=1), strict=True) if full])
        used = int(mask.sum(dim=1).max())
        device = self.encoder.embed_tokens.weight.device
        features = self.features(ids[:, :used].to(device), mask[:, :used].to(device))
        return F.pad(features, (0, 0, 0, self.config.length - used))

    def _tell_of_cuts(self, full: list[str]) -> None:
        """One line for each of the texts, which fill all positions, that is longer still."""
        most = self.config.length
        for text in full:
            if int(self.tokens([text], 2 * most)[1].sum()) > most:
                beginning = " ".join(text.split())[:40]
                log.warning(
                    'prompt "%s ...": only its first %d tokens are read, say it in fewer words', beginning, most
                )


def clean(text: str, fix_text: bool) -> str:
    """Unicode repaired (with ftfy, if asked for), HTML entities resolved twice, runs of white space made one space."""
    if fix_text:
        try:
            import ftfy
        except ImportError as error:
            raise ValueError("the published text encoder needs ftfy to clean prompts: pip install ftfy") from error
        text = ftfy.fix_text(text)
    return re.sub(r"\s+", " ", html.unescape(html.unescape(text))).strip()


def hub_tokenizer(folder: str | Path) -> Tokenize:
    """The tokenizer of a local Hugging Face folder, such as google/umt5-xxl. ValueError where it cannot be read."""
    from transformers import AutoTokenizer

    if not Path(folder).is_dir():
        raise ValueError(f"tokenizer folder {folder} does not exist: run bash scripts/download.sh")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"tokenizer folder {folder} cannot be read ({reason}): run bash scripts/download.sh"
        ) from error

    def tokenize(texts: list[str], length: int) -> tuple[Tensor, Tensor]:
        out = tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=length,
            add_special_tokens=True,
            return_tensors="pt",
        )
        return out["input_ids"], out["attention_mask"].bool()

    return tokenize


def file_tokenizer(path: str | Path) -> Tokenize:
    """The tokenizer of one tokenizer.json, such as `train_tokenizer` writes. ValueError where it cannot be read."""
    if not Path(path).is_file():
        raise ValueError(f"tokenizer {path} does not exist: name a tokenizer.json")
    try:
        return _batched(FastTokenizer.from_file(str(path)))
    except Exception as error:  # the binding raises nothing narrower
        raise ValueError(f"tokenizer {path} cannot be read: {error}") from error


def train_tokenizer(texts: Iterable[str], path: str | Path, vocab: int = 512) -> Tokenize:
    """Learns a small tokenizer from `texts` and writes it to `path` as one tokenizer.json.

    Lower-cased byte-pair encoding over bytes, so every text has tokens. Ids: 0 padding, 1 end of text. Deterministic.
    Raises ValueError if `vocab` cannot hold the 256 bytes.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab < len(alphabet) + 2:
        raise ValueError(f"a vocabulary of {vocab} cannot hold {len(alphabet)} bytes and 2 marks: use 512")
    tokenizer = FastTokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[PAD, END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return file_tokenizer(path)


def published_names(names: Iterable[str]) -> dict[str, str]:
    """Our parameter name for each name of a file, as {ours: theirs}.

    Read are Wan's names (blocks.0.attn.q.weight) and those of transformers (encoder.block.0.layer.0 ..), whose files
    may hold the embedding under one or both of its names.
    """
    ours = {}
    for name in names:
        inner = name.removeprefix("encoder.")
        if inner == "shared.weight":
            ours.setdefault("encoder.embed_tokens.weight", name)
        else:
            ours["encoder." + _rename(inner, _FROM_PUBLISHED)] = name
    return ours


def published_name(ours: str) -> str:
    """Wan's name for one of our parameters."""
    return _rename(ours.removeprefix("encoder."), _TO_PUBLISHED)


_LEAVES = {
    "layer.0.SelfAttention.q.weight": "attn.q.weight",
    "layer.0.SelfAttention.k.weight": "attn.k.weight",
    "layer.0.SelfAttention.v.weight": "attn.v.weight",
    "layer.0.SelfAttention.o.weight": "attn.o.weight",
    "layer.0.SelfAttention.relative_attention_bias.weight": "pos_embedding.embedding.weight",
    "layer.0.layer_norm.weight": "norm1.weight",
    "layer.1.DenseReluDense.wi_0.weight": "ffn.gate.0.weight",
    "layer.1.DenseReluDense.wi_1.weight": "ffn.fc1.weight",
    "layer.1.DenseReluDense.wo.weight": "ffn.fc2.weight",
    "layer.1.layer_norm.weight": "norm2.weight",
}
_TOP = {"embed_tokens.weight": "token_embedding.weight", "final_layer_norm.weight": "norm.weight"}
_TO_PUBLISHED = ("block", "blocks", {**_TOP, **_LEAVES})
_FROM_PUBLISHED = ("blocks", "block", {theirs: ours for ours, theirs in {**_TOP, **_LEAVES}.items()})


def _rename(name: str, table: tuple[str, str, dict[str, str]]) -> str:
    """`name` in the other scheme; a name that the table does not know stays as it is, to be reported by the loader."""
    before, after, leaves = table
    match = re.fullmatch(rf"{before}\.(\d+)\.(.+)", name)
    if match is None:
        return leaves.get(name, name)
    number, leaf = match.groups()
    return f"{after}.{number}.{leaves[leaf]}" if leaf in leaves else name


def _batched(tokenizer: FastTokenizer) -> Tokenize:
    def tokenize(texts: list[str], length: int) -> tuple[Tensor, Tensor]:
        tokenizer.enable_truncation(length)
        tokenizer.enable_padding(length=length, pad_id=0, pad_token=PAD)
        rows = tokenizer.encode_batch(texts)
        return torch.tensor([row.ids for row in rows]), torch.tensor([row.attention_mask for row in rows]).bool()

    return tokenize


def _transformers_config(config: TextConfig) -> UMT5Config:
    return UMT5Config(
        vocab_size=config.vocab,
        d_model=config.dim,
        d_kv=config.head_dim,
        d_ff=config.ffn,
        num_layers=config.layers,
        num_heads=config.heads,
        relative_attention_num_buckets=config.buckets,
        relative_attention_max_distance=config.max_distance,
        dropout_rate=0.0,
        layer_norm_epsilon=1e-6,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
    )
