#!/usr/bin/env bash
# The whole nano recipe, stage by stage: bash scripts/reproduce_nano.sh [--from STAGE] [--until STAGE] [--dry-run] [--list] [--help] [key=value ...]
# Every stage runs its own config, configs/train_nano.yaml and so on; without a GPU its debug config. One that is finished
# is not run again (remove runs/reproduce to start anew), one that is not goes on from its last checkpoint. key=value goes
# to every stage, so all must know it: device=NAME, family=FOLDER. The seconds of each stage are kept in
# runs/reproduce/seconds.txt. --dry-run says what every stage that is left would take, and leaves nothing behind.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
STAGES="world vae small_decoder judges audio clips teacher pairs ode dmd evaluate"
usage() { sed -n '2,6s/^# \{0,1\}//p' "$ROOT/scripts/reproduce_nano.sh"; echo "stages: $STAGES"; }
mistake() { echo "reproduce_nano: $*" >&2; exit 2; }
known() { [[ " $STAGES " == *" $1 "* ]] || mistake "unknown stage '$1': choose from $STAGES"; }
first=world last=evaluate settings=() dry="" active=no
while [ $# -gt 0 ]; do
  case "$1" in
    --from | --until)
      [ $# -gt 1 ] || mistake "$1 needs the name of a stage: $STAGES"
      known "$2" && if [ "$1" = --from ]; then first=$2; else last=$2; fi && shift ;;
    --dry-run) dry=--dry-run ;;
    --config | --config=*) mistake "$1: every stage has a config of its own; change those in configs/, or give key=value" ;;
    --list) echo "${STAGES// /$'\n'}" && exit ;;
    -h | --help) usage && exit ;;
    *=*) settings+=("$1") ;;
    *) mistake "unknown argument '$1': --help shows the usage" ;;
  esac
  shift
done
left=" $STAGES " && left=" $first ${left#*" $first "}" # from there on
[[ "$left" == *" $last "* ]] || mistake "--from $first comes after --until $last: the order is $STAGES"
# What stages would refuse is refused before the first of them begins.
kind=$("$PYTHON" -m livetalk.commands.recipe "${settings[@]+"${settings[@]}"}") || exit $?
folder="runs/reproduce$kind"
run() { "$PYTHON" "$ROOT/scripts/$1.py" --config "$ROOT/configs/$1$kind.yaml" $dry "${@:2}" "${settings[@]+"${settings[@]}"}"; }
rendered() { # N key=value ...: in N processes, since one is bound by a single core
  local i parts=$([ -z "$kind" ] && echo "$1" || echo 2) pids=()
  if [ -n "$dry" ]; then run train_teacher "${@:2}"; return; fi
  for ((i = 0; i < parts; i++)); do run train_teacher "part=$i" "parts=$parts" "${@:2}" & pids+=($!); done
  for i in "${pids[@]}"; do wait "$i"; done
}
command_of() {
  case "$1" in
    world) rendered 8 keep_frames=true $([ -n "$kind" ] || echo clips=3072) ;;
    clips) rendered 16 keep_frames=false workers=1 ;; # encoded by the VAE and the audio encoder that are there now
    vae | small_decoder) run train_nano first="$1" last="$1" frames_from=own ;;
    judges | audio) run train_nano first="$1" last="$1" ;;
    pairs) run generate_ode_pairs ;;
    teacher | ode | dmd) run "train_$1" ;;
    evaluate) run evaluate ;;
  esac
}
for stage in $STAGES; do
  if [ "$stage" = "$first" ]; then active=yes; fi
  if [ $active = yes ] && [ ! -e "$folder/$stage.done" ]; then
    echo "reproduce_nano: $stage" && began=$SECONDS
    command_of "$stage"
    [ -n "$dry" ] || { mkdir -p "$folder" && echo "$stage $((SECONDS - began))" >>"$folder/seconds.txt" && touch "$folder/$stage.done"; }
  fi
  [ "$stage" != "$last" ] || break
done
[ -n "$dry" ] || echo "reproduce_nano: $first to $last are done; seconds of each stage are in $folder/seconds.txt"
