#!/bin/sh
# Makes sure that MuJoCo can render off-screen: install_gl.sh PYTHON. As root on Debian or Ubuntu it installs a library where none is
# found; elsewhere it says what to install.
set -eu
found() {
    "$1" -c "
import os, sys
from pi0_jax.sim import gl
sys.exit(gl.choose(os.environ, exists=os.path.exists, works=gl.library_works) == 'disable')"
}
if found "$1"; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing an off-screen OpenGL library (libosmesa6, or libegl1 where that package no longer exists)"
    apt-get update -qq
    apt-get install -y -qq libosmesa6 || apt-get install -y -qq libegl1 libegl-mesa0 libgl1-mesa-dri
    found "$1"
else
    echo "MuJoCo needs an off-screen OpenGL library: install OSMesa (Debian, Ubuntu: apt-get install libosmesa6) or EGL (libegl1)" >&2
    exit 1
fi
