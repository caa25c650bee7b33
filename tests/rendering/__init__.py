"""They render, so each file runs in a process of its own: see tests/test_rendering.py."""
