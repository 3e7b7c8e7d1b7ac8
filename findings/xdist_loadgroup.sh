#!/usr/bin/env bash
# Title: pytest-xdist's `--dist loadgroup` ignores xdist_group with pytest 9.2
#
# Versions: pytest-xdist 3.8.0 with pytest 9.2.0; with pytest 9.1.1 the groups are kept
#
# Behaviour: `--dist loadgroup` should send all tests of one `xdist_group` to one worker. pytest-xdist 3.8.0 marks them by
#   writing to `item._nodeid`, an attribute that pytest 9.2 no longer reads. Its requirement is pytest >= 7.0, so pip
#   installs the two together. The run neither fails nor warns: the tests of a group are spread over the workers, and
#   tests that share a server or a folder fail now and then. `--dist loadfile` is not affected.
#
# Output seen (2026-11-28):
#   pytest 9.1.1: the 8 tests of one group ran on 1 worker(s)
#   pytest 9.2.0: the 8 tests of one group ran on 2 worker(s)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/test_group.py" <<'PYTHON'
import os
import time

import pytest


@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(8))
def test_worker(number):
    time.sleep(0.2)
    with open(os.environ["WORKERS"], "a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + "\n")
PYTHON
declare -A workers
for version in 9.1.1 9.2.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/python" -m pip install --quiet --disable-pip-version-check \
        "pytest==$version" pytest-xdist==3.8.0
    (cd "$folder" && WORKERS="$folder/$version.txt" "$version/bin/python" -m pytest -q -n 2 --dist loadgroup >/dev/null)
    workers[$version]=$(sort -u "$folder/$version.txt" | wc -l)
    echo "pytest $version: the 8 tests of one group ran on ${workers[$version]} worker(s)"
done
if [[ ${workers[9.1.1]} != 1 || ${workers[9.2.0]} != 2 ]]; then
    echo "the behaviour has changed" >&2
    exit 1
fi
