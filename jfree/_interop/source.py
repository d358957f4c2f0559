"""Where in a model's source a step stands."""

import os
import sysconfig

from jax.extend.core import JaxprEqn

# Ahead of the name of a scope that tells the place itself.
GIVEN = "@"

# What is said of a place must be the reader's own code.
_LIBRARIES = (
    sysconfig.get_paths()["purelib"],
    sysconfig.get_paths()["stdlib"],
    os.path.dirname(os.path.dirname(__file__)),
)


def place_in_source(equation: JaxprEqn, called: str, at: str) -> str:
    """Where in the model's source an equation comes from, to be printed behind its name, given the function that is
    `called`, and where. What a library's function does is found where it is called; what JAX remembers of its inside is
    an earlier call.
    """
    stack = str(equation.source_info.name_stack)
    if GIVEN in stack:
        return stack.rpartition(GIVEN)[2]
    traceback = equation.source_info.traceback
    within = f" in {stack}" if stack else ""
    for frame in () if traceback is None else traceback.frames:
        if frame.file_name.startswith(_LIBRARIES) or frame.file_name.startswith("<frozen"):
            continue
        if at and frame.function_name.split(".")[-1] != called:
            return at
        return f" at {os.path.basename(frame.file_name)}:{frame.line_num}, {frame.function_name}{within}"
    return at or within
