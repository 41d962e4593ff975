#!/bin/bash
# run.sh [PYTEST-ARGUMENTS...]: inside of the root file system (enter.sh): installs this checkout, then runs the tests
# that depend on OpenSSL, or those that are named.
set -eu
venv=/venv
[ -x $venv/bin/pip ] || python3 -m venv --system-site-packages $venv
$venv/bin/pip install -q -e '.[test]'
openssl version
if [ $# -gt 0 ]; then
  exec $venv/bin/python -m pytest "$@"
fi
# What an OpenSSL of another version changes: the core's handshakes and records, certificates, and how they fail.
$venv/bin/python -m pytest -n auto tests/unit/test_cext.py tests/unit/test_cli_check.py tests/unit/test_linux_openssl.py \
  tests/unit/test_authority_*.py tests/unit/test_identity_*.py tests/unit/test_federation.py
exec $venv/bin/python -m pytest -n auto -m 'not alone' tests/netns/test_keys.py tests/netns/test_fips.py \
  tests/netns/test_key_exchange.py tests/netns/test_check.py tests/netns/test_trust_rotation.py \
  tests/netns/test_revocation.py tests/netns/test_federation.py tests/netns/test_certificate_service.py \
  tests/netns/test_core_upgrade.py tests/netns/test_path_*.py
