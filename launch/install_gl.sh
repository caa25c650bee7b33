#!/bin/sh
# Makes sure that MuJoCo can render off-screen: install_gl.sh PYTHON. As root on Debian or Ubuntu it installs a library where none is
# found; elsewhere it says what to install.
set -eu
choice() {
    "$1" -c "
import os
from pi0_jax.sim import gl
print(gl.choose(os.environ, exists=os.path.exists, works=gl.library_works))"
}
chosen=$(choice "$1")
if [ "$chosen" = disable ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing an off-screen OpenGL library (libosmesa6, or libegl1 where that package no longer exists)"
    apt-get update -qq
    apt-get install -y -qq libosmesa6 || apt-get install -y -qq libegl1 libegl-mesa0 libgl1-mesa-dri
    chosen=$(choice "$1")
fi
if [ "$chosen" = disable ]; then
    echo "MuJoCo needs an off-screen OpenGL library: install OSMesa (Debian, Ubuntu: apt-get install libosmesa6) or EGL (libegl1)" >&2
    exit 1
fi
