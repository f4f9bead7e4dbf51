#!/usr/bin/env bash
# The whole nano recipe, stage by stage: bash scripts/reproduce_nano.sh [--from STAGE] [--until STAGE] [--list] [--help] [key=value ...]
#
# Without a GPU every stage runs its debug config. A finished stage is not run again (remove runs/reproduce to start
# anew), an unfinished one goes on from its last checkpoint. key=value goes to every stage, so it must be known to all of
# them, such as world.face_model=FILE. The seconds of each stage are kept in runs/reproduce/seconds.txt.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
STAGES="world vae small_decoder judges audio teacher pairs ode dmd evaluate"
usage() { sed -n '2,6s/^# \{0,1\}//p' "$ROOT/scripts/reproduce_nano.sh"; echo "stages: $STAGES"; }
mistake() { echo "reproduce_nano: $*" >&2; exit 2; }
known() { [[ " $STAGES " == *" $1 "* ]] || mistake "unknown stage '$1': choose from $STAGES"; }
first=world last=evaluate settings=()
while [ $# -gt 0 ]; do
  case "$1" in
    --from | --until)
      [ $# -gt 1 ] || mistake "$1 needs the name of a stage: $STAGES"
      known "$2"
      if [ "$1" = --from ]; then first=$2; else last=$2; fi
      shift ;;
    --list) echo "${STAGES// /$'\n'}" && exit ;;
    -h | --help) usage && exit ;;
    *=*) settings+=("$1") ;;
    *) mistake "unknown argument '$1': --help shows the usage" ;;
  esac
  shift
done
kind=$("$PYTHON" -c 'import torch; print("" if torch.cuda.is_available() else "_debug")')
folder="runs/reproduce$kind" && mkdir -p "$folder"
run() { "$PYTHON" "$ROOT/scripts/$1.py" --config "$ROOT/configs/$1$kind.yaml" "${@:2}" "${settings[@]+"${settings[@]}"}"; }
world() { # in several processes, since one is bound by a single core
  local i parts=$([ -z "$kind" ] && echo 8 || echo 2) pids=()
  for ((i = 0; i < parts; i++)); do run train_teacher "part=$i" "parts=$parts" & pids+=($!); done
  for i in "${pids[@]}"; do wait "$i"; done
}
command_of() {
  case "$1" in
    world) world ;;
    vae | small_decoder) run train_nano first="$1" last="$1" frames_from=own ;;
    judges | audio) run train_nano first="$1" last="$1" ;;
    pairs) run generate_ode_pairs ;;
    teacher | ode | dmd) run "train_$1" ;;
    evaluate) run evaluate ;;
  esac
}
active=no
for stage in $STAGES; do
  [ "$stage" = "$first" ] && active=yes
  if [ $active = yes ] && [ ! -e "$folder/$stage.done" ]; then
    echo "reproduce_nano: $stage" && began=$SECONDS
    command_of "$stage"
    echo "$stage $((SECONDS - began))" >>"$folder/seconds.txt"
    touch "$folder/$stage.done"
  fi
  if [ "$stage" = "$last" ]; then
    [ $active = yes ] || mistake "--from $first comes after --until $last: the order is $STAGES"
    break
  fi
done
echo "reproduce_nano: $first to $last are done; seconds of each stage are in $folder/seconds.txt"
