"""Why a step of a model can't be read, in words to be printed behind its name and place."""

_POOLS = "is pooling, which can't be read; patches, convolutions whose stride is their kernel, can"
_MULTIPLIES = "multiplies two values that depend on the input, as attention does: these are not free"
_MAXIMUM = "takes a maximum, as softmax and pooling do"

# By names of primitives.
_REASONS = {
    "dot_general": _MULTIPLIES,
    "concatenate": "puts different values side by side; what can be read adds them up",
    "reduce_max": _MAXIMUM,
    "reduce_window": _POOLS,
    "reduce_window_max": _POOLS,
    "reduce_window_sum": _POOLS,
    "reduce_sum": "sums or averages units, and is no layer norm or RMS norm; pooling can't be read",
    "sort": "sorts units",
    "stop_gradient": "has no gradient, so that the Jacobian is not that of the values",
    "while": "is a loop whose number of turns is not known; a `scan` or a Python loop can be read",
    "cond": "depends on a condition that depends on the input",
}

# By parts of names, as PyTorch has them.
_REASONS_OF_KINDS = {"pool": _POOLS, "attention": _MULTIPLIES, "softmax": _MAXIMUM}

READABLE = (
    "What can be read: weights, functions of every entry, layer and RMS norms, dropout, gates, sums of branches, "
    "scales, circular convolutions and patches."
)


def why_unread(name: str, otherwise: str = "mixes units in a way that can't be read") -> str:
    kinds = (reason for kind, reason in _REASONS_OF_KINDS.items() if kind in name)
    return _REASONS.get(name) or next(kinds, otherwise)
