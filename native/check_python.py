"""Prints why the Python that runs this cannot be embedded and exits 1, or nothing at all."""

import os
import sys
import sysconfig


def main():
    version = "%d.%d" % tuple(sys.version_info[:2])
    me = "Python %s at %s" % (version, sys.executable)
    if sys.version_info < (3, 11) or sys.implementation.name != "cpython":
        return "CPython 3.11 or newer is needed and this is %s: name another with PYO3_PYTHON" % me
    config = sysconfig.get_config_var
    if config("Py_GIL_DISABLED"):
        return (
            "%s is a free-threaded build, which is not supported: the GIL orders our threads" % me
        )
    if config("PYTHONFRAMEWORK"):
        return None
    library = os.path.join(config("LIBDIR") or "", config("LDLIBRARY") or "")
    header = os.path.join(sysconfig.get_path("include"), "Python.h")
    if config("Py_ENABLE_SHARED") and os.path.exists(library) and os.path.exists(header):
        return None
    return (
        "%s lacks its shared library or its headers (%s, %s).\n"
        "  Debian, Ubuntu: apt-get install python%s-dev\n"
        "  Fedora:         dnf install python3-devel\n"
        "  macOS:          brew install python\n"
        "  pyenv:          PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install %s\n"
        "Or name another Python with PYO3_PYTHON." % (me, library, header, version, version)
    )


sys.exit(main())
