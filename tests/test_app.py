"""How a launch script ends."""

import subprocess
import sys


def test_stopped_by_hand_it_says_so_in_one_line():
    program = "from launch.app import run\ndef main(): raise KeyboardInterrupt\nrun(main)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (130, "stopped\n")
