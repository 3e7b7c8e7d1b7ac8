"""scripts/chaos.py on a small network, and that its comparison can fail."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from launching import ROOT
from tiny import SMALL


@pytest.mark.slow
def test_a_killed_run_ends_identical_to_an_undisturbed_one(tmp_path):
    shown = [*SMALL, "--config.total_steps=1200", "--config.log_steps=50", "--config.evaluate_steps=300"]
    shown = [word for word in shown if "checkpoint_steps" not in word]
    words = [sys.executable, str(ROOT / "scripts" / "chaos.py"), f"--workdir={tmp_path / 'work'}", "--kills=4", *shown]
    run = subprocess.run(words, capture_output=True, text=True, timeout=1800)
    assert run.returncode == 0, (run.stdout, run.stderr)
    assert len(re.findall(r"^kill +\d, .*: (killed by SIG\w+|saved and exited)", run.stdout, re.MULTILINE)) == 4
    match = re.search(r"step 1200: (\d+) of (\d+) arrays .* identical\nmetrics of (\d+) records: identical", run.stdout)
    assert match and match[1] == match[2] and int(match[2]) > 50 and int(match[3]) >= 28

    # The script's comparison, on a run with another seed.
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from chaos import arrays_of, metrics_of
    finally:
        sys.path.pop(0)
    undisturbed, other = tmp_path / "work" / "undisturbed", tmp_path / "other"
    effv2 = str(Path(sys.executable).with_name("effv2"))
    train = [effv2, "train", f"--config={ROOT}/configs/digits.py", f"--workdir={other}", *SMALL, "--config.seed=1"]
    assert subprocess.run(train, capture_output=True).returncode == 0
    assert any(
        a.tobytes() != b.tobytes()
        for a, b in zip(arrays_of(undisturbed)[1].values(), arrays_of(other)[1].values(), strict=True)
    )
    assert metrics_of(undisturbed) != metrics_of(other)
