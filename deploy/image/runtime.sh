#!/bin/bash
# runtime.sh TARGET: makes of Debian trixie what runs nodeseal, which is in TARGET already: what it needs is installed, what it
# does not need is taken away, and what is left is written down (/usr/share/nodeseal/sbom.spdx.json).
set -eu
: "${SOURCE_DATE_EPOCH:?}"
export SOURCE_DATE_EPOCH
target=$1
here=$(dirname "$0")
export DEBIAN_FRONTEND=noninteractive

apt-get update -q
apt-get install -q -y --no-install-recommends ca-certificates iptables libnghttp2-14 libssl3t64 python3

# Nothing is installed here later. dpkg's list says the truth about the rest, for those who look for vulnerabilities.
unneeded=""
for package in adduser apt bash bsdutils debconf diffutils e2fsprogs gpgv init-system-helpers libapt-pkg7.0 libdb5.3t64 \
  libpam-modules libpam-modules-bin libpam-runtime libsemanage2 libsemanage-common libsepol2 libstdc++6 login login.defs \
  logsave mount ncurses-bin openssl-provider-legacy passwd perl-base sqv sysvinit-utils tar tzdata; do
  if dpkg-query -W "$package" >/dev/null 2>&1; then unneeded="$unneeded $package"; fi
done
# Their scripts would tell services and databases that are in no image.
rm -f /var/lib/dpkg/info/*.{p*inst,p*rm,triggers,config,templates,shlibs,symbols,md5sums}
# shellcheck disable=SC2086  # words
dpkg --purge --force-depends --force-remove-essential --force-remove-protected $unneeded >/tmp/purge.log 2>&1 ||
  { cat /tmp/purge.log; exit 1; }

find /usr/share/doc -mindepth 2 ! -type d ! -name copyright -delete
find /usr/share/doc -depth -type d -empty -delete
ldconfig
rm -rf /usr/share/man /usr/share/info /usr/share/locale /usr/share/lintian /usr/share/bash-completion /usr/share/perl* \
  /usr/lib/*/gconv /usr/lib/*/perl* /usr/lib/python3.*/{test,pydoc_data,idlelib,turtledemo,lib2to3,ensurepip} \
  /var/lib/apt /var/cache /var/log /var/lib/dpkg/*-old \
  /var/backups /etc/apt /root/.cache
mkdir -p /var/log /var/cache

# Compiled once, and never looked at their sources' times again: those differ from build to build.
find /usr/lib/python3* "$target" -name __pycache__ -prune -exec rm -rf {} +
python3 -m compileall -q --invalidation-mode unchecked-hash /usr/lib/python3.* /usr/lib/python3/dist-packages "$target/lib"

mkdir -p /usr/share/nodeseal
"$target/bin/python" "$here/sbom.py" > /usr/share/nodeseal/sbom.spdx.json
rm -rf "$here" /tmp/* /etc/machine-id
