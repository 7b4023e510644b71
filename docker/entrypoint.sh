#!/usr/bin/env bash
# What happens in a container before the program starts: be the right user, find the data, and see
# whether this machine can train at all. Then `pipeline` takes the place of this script.
#
#   IGNITE_OWNER       a path; started as root, we become the user to whom it belongs
#   DATA               how the file or folder mounted at /mnt/data is called outside
#   IGNITE_PREFLIGHT   skip: look at nothing before
set -euo pipefail

# Docker makes what it mounts as root if it is not there. It must be the user's before we are.
if [[ $(id -u) == 0 && -n ${IGNITE_OWNER:-} ]]; then
  read -r user group < <(stat -c '%u %g' "$IGNITE_OWNER")
  if [[ $user != 0 ]]; then
    for folder in "$PWD/artifacts" "${IGNITE_CACHE:-/cache}"; do
      [[ ! -d $folder || $(stat -c %u "$folder") != 0 ]] || chown "$user:$group" "$folder"
    done
    exec setpriv --reuid "$user" --regid "$group" --clear-groups "$0" "$@"
  fi
fi
[[ -w $HOME ]] || export HOME=/tmp

case ${1:-} in
  bash | sh | python | python3 | torchrun | launch | pytest) exec "$@" ;;
  pipeline) shift ;;
esac

# The file keeps the name it has outside, because its ending says what it is.
if [[ -n ${DATA:-} && ${1:-} == run && " $* " != *" --data"* ]]; then
  mkdir -p /tmp/data
  ln -sfn /mnt/data "/tmp/data/$(basename "$DATA")"
  set -- "$@" --data "/tmp/data/$(basename "$DATA")"
fi

case ${1:-} in
  run | sample | generate)
    if [[ ${IGNITE_PREFLIGHT:-} != skip && " $* " != *" --help "* ]]; then
      told=()
      for word in "$@"; do  # it looks at the device and the store that the run was told
        case ${last:-} in --device | --store) told+=("$last" "$word") ;; esac
        case $word in --device=* | --store=*) told+=("$word") ;; esac
        last=$word
      done
      pipeline preflight --quiet "${told[@]}" >&2
    fi
    ;;
esac
exec pipeline "$@"
