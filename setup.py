"""The compiled kernel, an optional part: where no compiler can build it the package is installed
without it.
"""

from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("src", "trueode", "solvers", "backends", "native")
FLAGS = [
    "-O3",
    "-g0",
    "-std=gnu11",
    "-pthread",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
]

setup(
    ext_modules=[
        Extension(
            # loaded by ctypes: it needs no header of Python
            "trueode.solvers.backends.native._kernel",
            [str(NATIVE / "native.c")],
            depends=[str(path) for path in sorted(NATIVE.glob("*.h"))],
            extra_compile_args=FLAGS,
            extra_link_args=["-pthread"],
            optional=True,
        )
    ]
)
