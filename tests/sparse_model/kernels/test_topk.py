"""The GPU kernels under Triton's interpreter, in a process of its own: the switch is read when triton is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).with_name("triton_check.py")


@pytest.mark.timeout(120)
def test_kernels_equal_torch_topk_and_its_gradient():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, str(CHECK)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "cases agree" in done.stdout
