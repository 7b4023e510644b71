#!/usr/bin/env bash
# What happens in a container before the program starts: be the right user, find the data, and see
# whether this machine can train at all. Then `pipeline` takes the place of this script.
#
#   IGNITE_OWNER       a path; started as root, we become the user to whom it belongs (Compose)
#   DATA               how the file or folder mounted at /mnt/data is called outside
#   IGNITE_PREFLIGHT   skip: look at nothing before
set -euo pipefail

# Docker makes what it mounts as root if it is not there. It must be the user's before we are.
if [[ $(id -u) == 0 && -n ${IGNITE_OWNER:-} ]]; then
  read -r user group < <(stat -c '%u %g' "$IGNITE_OWNER")
  if [[ $user != 0 ]]; then
    IGNITE_CACHE=${IGNITE_CACHE:-/cache}/$user # several users may share the volume
    mkdir -p "$IGNITE_CACHE"
    for folder in "$PWD/artifacts" "$IGNITE_CACHE"; do
      # only what is empty, and so nobody's yet
      [[ ! -d $folder || $(stat -c %u "$folder") != 0 || -n $(ls -A "$folder") ]] ||
        chown "$user:$group" "$folder"
    done
    export IGNITE_CACHE
    exec setpriv --reuid "$user" --regid "$group" --clear-groups "$0" "$@"
  fi
fi
[[ -w $HOME ]] || export HOME=/tmp

case ${1:-} in
  bash | sh | python | python3 | torchrun | launch | pytest) exec "$@" ;;
  pipeline) shift ;;
esac

# Of what was said, the store, the device, and where else something is to be written.
store=${IGNITE_STORE:-artifacts} looked=() written=() last='' verb=${1:-}
for word in "$@"; do
  case $last in
    --store) store=$word looked+=("$last" "$word") ;;
    --device) looked+=("$last" "$word") ;;
    -o | --output) written+=("$word") ;;
  esac
  case $word in
    --store=*) store=${word#*=} looked+=("$word") ;;
    --device=*) looked+=("$word") ;;
    --output=*) written+=("${word#*=}") ;;
  esac
  if [[ $verb == push && $word != push && $word != -* && $last != --store ]]; then
    written+=("$word")
  fi
  last=$word
done

# With Compose the container is gone afterwards, and with it what does not lie on a mount.
if [[ -n ${IGNITE_OWNER:-} ]]; then
  export IGNITE_AGAIN="the same docker compose command"
  for place in "$store" ${written[@]+"${written[@]}"}; do
    [[ $place != *://* ]] || continue
    there=$place
    while [[ ! -e $there ]]; do there=$(dirname "$there"); done
    if [[ $(stat -L -c %d "$there") == $(stat -c %d /) ]]; then
      echo "error: $place would lie in the container and go with it. Everything below artifacts" \
        "stays (let ./artifacts be a link to another disk, if you like), and so does a bucket" \
        "(s3://...); or let the container be: launch local --store DIR" >&2
      exit 2
    fi
  done
fi

# The file keeps the name it has outside, because its ending says what it is.
if [[ -n ${DATA:-} && $verb == run && " $* " != *" --data"* ]]; then
  name=$(basename "$DATA")
  case $name in . | .. | /) name=data ;; esac
  mkdir -p /tmp/data
  ln -sfn /mnt/data "/tmp/data/$name"
  set -- "$@" --data "/tmp/data/$name"
fi

case $verb in
  run | sample | generate)
    if [[ ${IGNITE_PREFLIGHT:-} != skip && " $* " != *" --help "* ]]; then
      trap 'exit 130' INT # else a Ctrl-C that it has just survived would be forgotten
      trap 'exit 143' TERM
      pipeline preflight --quiet ${looked[@]+"${looked[@]}"} >&2
      trap - INT TERM
    fi
    ;;
esac
exec pipeline "$@"
