#!/usr/bin/env bash
# The published weights into pretrained_checkpoints/: see --help.
set -euo pipefail

usage() {
  cat <<'TEXT'
Downloads the published weights into pretrained_checkpoints/ with `hf download`. What is there already is not fetched again.

usage: bash scripts/download.sh [--student] [--teacher-1.3b] [--teacher-14b] [--dry-run] [--help]

  --student       LiveTalk-1.3B and what every model needs: VAE, text encoder, wav2vec2 (default; about 16 GB)
  --teacher-1.3b  Wan2.1-T2V-1.3B and OmniAvatar-1.3B besides, to be merged (about 8 GB more)
  --teacher-14b   Wan2.1-T2V-14B and OmniAvatar-14B besides, to be merged (about 60 GB more)
  --dry-run       prints the commands and does nothing

Teachers are then merged with: bash scripts/merge_lora.sh --size 1.3b|14b
TEXT
}

mistake() { printf 'download: %s\n' "$*" >&2; exit 2; }

student=0 small=0 large=0 dry=0
for word in "$@"; do
  case "$word" in
    --student) student=1 ;;
    --teacher-1.3b) small=1 ;;
    --teacher-14b) large=1 ;;
    --dry-run) dry=1 ;;
    -h | --help) usage; exit 0 ;;
    *) mistake "unknown option $word: use --student, --teacher-1.3b, --teacher-14b, --dry-run or --help" ;;
  esac
done
if [ $((small + large)) = 0 ]; then student=1; fi

if [ "$dry" = 0 ]; then
  source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
  cd "$ROOT"
  HF="$(dirname "$PYTHON")/hf"
  if [ ! -x "$HF" ]; then HF="$(command -v hf)" || mistake "hf is not installed: pip install huggingface-hub"; fi
fi

# get REPOSITORY [OPTION ...] FOLDER
get() {
  local folder="pretrained_checkpoints/${*: -1}"
  set -- download "${@:1:$#-1}" --local-dir "$folder"
  if [ "$dry" = 1 ]; then printf 'hf'; printf ' %q' "$@"; printf '\n'; return; fi
  "$HF" "$@" || mistake "$2 could not be downloaded (see above): check the network and the disk, then run this again"
}

# Without the 1.3B teacher, Wan2.1's own transformer is of no use.
if [ "$small" = 1 ]; then base=(); else base=(--exclude "diffusion_pytorch_model*"); fi
get Wan-AI/Wan2.1-T2V-1.3B "${base[@]}" Wan2.1-T2V-1.3B
get facebook/wav2vec2-base-960h config.json preprocessor_config.json model.safetensors wav2vec2
if [ "$student" = 1 ]; then get GAIR/LiveTalk-1.3B-V0.1 LiveTalk-1.3B-V0.1; fi
if [ "$small" = 1 ]; then get OmniAvatar/OmniAvatar-1.3B OmniAvatar-1.3B; fi
if [ "$large" = 1 ]; then
  get Wan-AI/Wan2.1-T2V-14B --include "diffusion_pytorch_model*" Wan2.1-T2V-14B
  get OmniAvatar/OmniAvatar-14B OmniAvatar-14B
fi
