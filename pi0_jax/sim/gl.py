"""Finds MuJoCo's off-screen OpenGL. MuJoCo reads MUJOCO_GL when it is imported: do that within `importing_mujoco`.

    MUJOCO_GL set            that
    a GPU device, EGL        egl, on the GPU
    OSMesa                   osmesa, in software (faster for small images than EGL in software)
    EGL                      egl, in software
    none of these            disable: physics works, rendering raises InputError

The libraries are loaded privately. Mesa brings LLVM along, as TensorFlow does, and where one finds the other's symbols
the process crashes: PyOpenGL's own way, RTLD_GLOBAL, does that in either order of import. (Older releases of Mesa's EGL
load their software drivers globally by themselves: beside TensorFlow, OSMesa is the choice there.)
"""

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Mapping

from pi0_jax.errors import InputError

# Neither offers its symbols to libraries loaded later nor takes those of libraries loaded before.
_PRIVATE = ctypes.RTLD_LOCAL | (os.RTLD_DEEPBIND if sys.platform == "linux" else 0)
_GPU_NODES = ("/dev/nvidia0", "/dev/dri")
_OFF = ("disable", "disabled", "off", "false", "0")
_EGL_PLATFORM_DEVICE = 0x313F
_MAX_EGL_DEVICES = 16


def choose(
    environ: Mapping[str, str], *, exists: Callable[[str], bool], works: Callable[[str], bool]
) -> str:
    """The value for MUJOCO_GL.

    Args:
        environ: environment variables; a MUJOCO_GL that is set and not empty is respected.
        exists: whether a device node is there.
        works: whether the library "EGL" or "OSMesa" can be used.
    """
    if environ.get("MUJOCO_GL"):
        return environ["MUJOCO_GL"]
    if any(exists(node) for node in _GPU_NODES) and works("EGL"):
        return "egl"
    if works("OSMesa"):
        return "osmesa"
    return "egl" if works("EGL") else "disable"


@contextlib.contextmanager
def importing_mujoco() -> Iterator[None]:
    """Sets MUJOCO_GL for this process and its children, and keeps private the libraries that MuJoCo loads.

    Without effect where MuJoCo is imported already, or off Linux, where there is nothing to choose.
    """
    if sys.platform != "linux" or "mujoco" in sys.modules:
        yield
        return
    os.environ["MUJOCO_GL"] = choose(os.environ, exists=os.path.exists, works=library_works)
    if os.environ["MUJOCO_GL"] == "egl":
        _load("EGL_mesa")  # what libEGL would otherwise load in its own way
    public, ctypes.RTLD_GLOBAL = (
        ctypes.RTLD_GLOBAL,
        _PRIVATE,
    )  # PyOpenGL names this flag and takes no other
    try:
        yield
    finally:
        ctypes.RTLD_GLOBAL = public


def require(environ: Mapping[str, str]) -> None:
    """Raises InputError, saying what to install, where rendering is off."""
    if environ.get("MUJOCO_GL", "").strip().lower() in _OFF:
        raise InputError(
            "rendering needs an off-screen OpenGL library, EGL or OSMesa; found none"
            f" (MUJOCO_GL={environ['MUJOCO_GL']}); on Debian or Ubuntu: apt-get install libosmesa6, or libegl1 where"
            " that package no longer exists"
        )


def library_works(name: str) -> bool:
    """Whether "OSMesa" loads, or "EGL" loads and can open a display on some device (without a driver it cannot)."""
    library = _load(name)
    return library is not None and (name != "EGL" or _egl_opens_a_display(library))


def _load(name: str) -> ctypes.CDLL | None:
    # The file names that PyOpenGL tries, which MuJoCo loads the library through; development links are often missing.
    for suffix in ("", *(f".{version}" for version in reversed(range(10)))):
        try:
            return ctypes.CDLL(f"lib{name}.so{suffix}", _PRIVATE)
        except OSError:
            continue
    return None


def _egl_opens_a_display(egl: ctypes.CDLL) -> bool:
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    query_address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    display_address = egl.eglGetProcAddress(b"eglGetPlatformDisplayEXT")
    if not query_address or not display_address:
        return False
    handles, number = ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_int)
    query_devices = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, handles, number)(query_address)
    platform_display = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, number)(
        display_address
    )
    egl.eglInitialize.argtypes = [ctypes.c_void_p, number, number]
    egl.eglTerminate.argtypes = [ctypes.c_void_p]

    devices, count = (ctypes.c_void_p * _MAX_EGL_DEVICES)(), ctypes.c_int(0)
    if not query_devices(_MAX_EGL_DEVICES, devices, ctypes.byref(count)):
        return False
    for device in devices[: count.value]:
        display = platform_display(_EGL_PLATFORM_DEVICE, device, None)
        if display and egl.eglInitialize(display, None, None):
            egl.eglTerminate(display)
            return True
    return False
