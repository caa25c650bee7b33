#!/bin/sh
# Makes sure that MuJoCo can render off-screen: install_gl.sh PYTHON. Where nothing renders it installs
# a library, as root on Debian or Ubuntu; elsewhere it says what to install.
set -eu
python=$1
chosen() {
    "$python" -c "import os; from pi0_jax.sim import gl; print(gl.choose(os.environ))"
}
if [ "$(chosen)" = disable ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing an off-screen OpenGL library (OSMesa, or EGL where that package no longer exists)"
    apt-get update -qq
    apt-get install -y -qq libosmesa6 || apt-get install -y -qq libegl1 libegl-mesa0 libgl1-mesa-dri
fi
if [ "$(chosen)" = disable ]; then
    echo "MuJoCo needs an off-screen OpenGL library: install OSMesa (Debian, Ubuntu: apt-get install" \
        "libosmesa6), or EGL (libegl1 libegl-mesa0 libgl1-mesa-dri)" >&2
    exit 1
fi
