#!/bin/bash
# build.sh SOURCE TARGET: builds nodeseal from SOURCE and installs it in TARGET, a virtual environment, with its BPF programs
# compiled. On Debian trixie, as root, without further privileges. What it makes is the same whenever it is run.
set -eu
: "${SOURCE_DATE_EPOCH:?}"
export SOURCE_DATE_EPOCH
source=$1 target=$2
export DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_DISABLE_PIP_VERSION_CHECK=1

apt-get update -q
apt-get install -q -y --no-install-recommends \
  binutils gcc libc6-dev libnghttp2-dev libssl-dev linux-libc-dev pkg-config python3-bpfcc python3-dev python3-venv

# The tools that build it stay outside of what is shipped.
python3 -m venv /tmp/tools
/tmp/tools/bin/pip install -q --require-hashes -r "$source/deploy/image/requirements-build.txt"
(cd "$source" && /tmp/tools/bin/python -m build --wheel --no-isolation --outdir /tmp/wheels .)

python3 -m venv --without-pip "$target"
pip() { /tmp/tools/bin/pip --python "$target/bin/python" install -q "$@"; }
pip --require-hashes --only-binary :all: -r "$source/deploy/image/requirements.txt"
pip --no-deps --no-index /tmp/wheels/*.whl

# bcc makes maps as it compiles; nothing here may.
gcc -O2 -shared -fPIC -o /tmp/pretend_bpf.so "$source/deploy/image/pretend_bpf.c"
# Debian's bcc is outside of the virtual environment.
packages=$(echo "$target"/lib/python3.*/site-packages)
LD_PRELOAD=/tmp/pretend_bpf.so PYTHONPATH=$packages /usr/bin/python3 -m nodeseal.capture.bpf.shipped

find "$target/lib" -name '*.so' -exec strip --strip-unneeded {} +
