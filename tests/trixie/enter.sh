#!/bin/bash
# enter.sh ROOT COMMAND...: runs a command as root in the root file system below ROOT, with a copy of this checkout's
# files in /nodeseal there.
#
# Mounts are made in a mount namespace of their own, which ends with the command: nothing of the host is changed.
# Its processes, network and kernel are the host's; tests make network namespaces of their own.
set -eu
root=$(realpath "$1")
shift
checkout=$(realpath "$(dirname "$0")/../..")

# Files that git knows or would add; what was built there stays.
mkdir -p "$root/nodeseal"
find "$root/nodeseal" -mindepth 1 -maxdepth 1 ! -name build -exec rm -rf {} +
git -C "$checkout" ls-files -z --cached --others --exclude-standard |
  (cd "$checkout" && tar -c --null --files-from=- --ignore-failed-read 2>/dev/null) | tar -x -C "$root/nodeseal"

# The host's names and certificates, for pip.
export ROOT=$root
# shellcheck disable=SC2016  # expanded by the inner shell
exec unshare --mount --propagation private /bin/bash -eu -c '
  mount --bind "$ROOT" "$ROOT"
  for name in proc sys dev; do mount --rbind "/$name" "$ROOT/$name"; done
  for name in run tmp; do mount -t tmpfs tmpfs "$ROOT/$name"; done
  for file in /etc/resolv.conf /etc/ssl/certs/ca-certificates.crt /etc/pip.conf; do
    [ -e "$file" ] || continue
    [ -e "$ROOT$file" ] || touch "$ROOT$file"
    mount --bind --read-only "$(realpath "$file")" "$ROOT$file"
  done
  exec chroot "$ROOT" /usr/bin/env --chdir=/nodeseal HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"
' enter "$@"
