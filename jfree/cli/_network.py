"""A network and its data from flags, TOML and .npz."""

import dataclasses
import tomllib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TYPE_CHECKING

import numpy as np
import tyro

if TYPE_CHECKING:
    from .._networks import mlp, network

_NUM_INPUTS, _NUM_OUTPUTS = 64, 10  # of scikit-learn's digits
DEEPEST, _MOST_CLASSES = 100_000, 65_536


SHAPED = "shaped_"


def default(text: str):
    """`None` stands for a flag that was not given; help shows this in its place."""
    return tyro.conf.arg(help_behavior_hint=f"(default: {text})")


@dataclasses.dataclass(frozen=True)
class Network:
    """An MLP, or what --config makes of [[layers]]. A flag that is given overrides the key of the same name in the
    [network] table of --config.
    """

    widths: Annotated[tuple[float, ...] | None, default("inputs, depth - 1 times width, 10")] = None
    """Widths N_0 .. N_L; only their ratios matter."""
    depth: Annotated[int | None, default("10; 50 for tune")] = None
    """Number of layers L, in place of --widths."""
    width: Annotated[float | None, default("256; 128 for tune")] = None
    """Width of the hidden layers, in place of --widths."""
    activation: Annotated[tuple[str, ...] | None, default("tanh")] = None
    """One for all layers but the last, or one per layer: linear, relu, leaky_relu, prelu, relu6, relu_squared,
    hard_tanh, hard_sine, hard_sigmoid, hard_silu, sparse_sigmoid, sparse_plus, tanh, erf, sigmoid, log_sigmoid,
    softplus, squareplus, softsign, silu, swish, quick_gelu, gelu, gelu_tanh, mish, elu, selu, celu, sin. Before an
    analytic one shaped_, as in shaped_gelu, shifts and scales it for this depth."""
    final_activation: Annotated[str | None, default("linear")] = None
    """Activation of the last layer."""
    weights: Annotated[tuple[str, ...] | None, default("orthogonal")] = None
    """gaussian, orthogonal, centred_gaussian or centred_orthogonal, one or one per layer."""
    sigma_w: Annotated[tuple[float, ...] | None, default("1")] = None
    """Scale of the weights: W has entries of variance sigma_w^2 / N_in. One or one per layer."""
    sigma_b: Annotated[tuple[float, ...] | None, default("0")] = None
    """Standard deviation of the biases, one or one per layer."""
    q0: Annotated[float | None, default("measured on the data")] = None
    """Mean square |x|^2 / N_0 of the input."""
    data: Annotated[Path | None, default("scikit-learn's digits, standardised")] = None
    """An .npz file with the inputs, as the network sees them, as array x: one row per input. For tune also their
    classes 0, 1, ... as array y."""

    def build(
        self,
        config: Path | None,
        depth: int = 10,
        width: float = 256.0,
        labelled: bool = False,
        tuned: Sequence[str] = (),
    ) -> tuple["mlp.MLP | network.Network", "Data"]:
        """The network, and the data that its `q0` comes from; of layers, the `tuned` numbers are leaves."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        table, layers = _read_config(config) if config else ({}, None)
        given = _override(table, given)
        empty = [key for key, value in given.items() if value == ()]
        if empty:
            raise ValueError(f"`{empty[0]}` must not be empty.")
        if "q0" in given and not 0 < given["q0"] < np.inf:
            raise ValueError(f"`q0` must be positive and finite, got {given['q0']}.")
        if layers is not None:
            _refuse_beside_layers(given)
        data = _data(given, labelled)
        given = {"q0": _mean_square(data.x, data.path)} | given if data.x is not None and "q0" not in given else given
        fits = labelled or "data" in given
        if layers is not None:
            return _of_layers(layers, given, data, fits, tuned), data
        return _mlp({"depth": depth, "width": width}, given, data, fits), data


def _refuse_beside_layers(given: dict[str, Any]) -> None:
    beside = ("width", "q0", "data")
    for key in given:
        if key not in beside:
            raise ValueError(f"`{key}` must not be given along with [[layers]], beside which {', '.join(beside)} may.")


def _of_layers(tables: Any, given: dict[str, Any], data: "Data", fits: bool, tuned: Sequence[str]) -> "network.Network":
    from .._networks import network
    from ._layers import read

    width = float(given.get("width", data.num_inputs))
    if fits and width != data.num_inputs:
        raise ValueError(f"`width` must be {data.num_inputs}, the length of the inputs in `data`, got {width:g}.")
    return network.Network(width, read(tables, tuned), given["q0"])


def _mlp(shape: dict[str, Any], given: dict[str, Any], data: "Data", fits: bool) -> "mlp.MLP":
    """**Arguments:** depth and width where none are given; what is; and data, and whether inputs must fit to them."""
    from .._networks import mlp

    if len(given.get("activation", ())) > 1 and "final_activation" in given:
        raise ValueError("`final_activation` must not be given along with one `activation` per layer.")
    widths = _widths(shape | given if "widths" not in given else given, data, fits)
    options = {key: _unpacked(value) for key, value in given.items() if key not in ("widths", "depth", "width", "data")}
    if len(widths) == 2 and "activation" in given and "final_activation" not in given:
        options["activation"] = given["activation"]  # of the only layer, which is the last
    names = {name for key in ("activation", "final_activation") for name in _each(options.get(key, ()))}
    found = {name: _shaped(name, len(widths) - 1) for name in names if name.startswith(SHAPED)}
    for key in ("activation", "final_activation"):
        if key in options:
            new = tuple(found.get(name, name) for name in _each(options[key]))
            options[key] = new[0] if isinstance(options[key], str) else new
    return mlp.MLP(widths, **options)


def _shaped(name: str, depth: int) -> Any:
    """What such a name stands for, as nonlinear as networks of this depth train best with."""
    from .._networks.nonlinearity import usual_share
    from ..activations import Shaped, shaped

    try:
        found = shaped(name.removeprefix(SHAPED), usual_share(depth))
    except ValueError as error:
        raise ValueError(f"`activation`: {name}: {error}") from error
    if not isinstance(found, Shaped):
        raise ValueError(f"`activation`: {SHAPED} may stand before an analytic activation only, got {name}.")
    return found


@dataclasses.dataclass(frozen=True)
class Data:
    """Rows of inputs, none if nothing is to be measured on them, their classes, a word on the source of `q0`, and the
    file if it is the user's.
    """

    x: np.ndarray | None
    y: np.ndarray | None
    source: str
    path: Path | None = None

    def mean_squares(self) -> np.ndarray | None:
        """Of single inputs: the quantiles at 5, 50 and 95%; none if there are no inputs."""
        if self.x is None:
            return None
        squares = np.mean(np.square(self.x), axis=1)
        return np.quantile(squares[squares > 0], (0.05, 0.5, 0.95))

    @property
    def num_inputs(self) -> int:
        return _NUM_INPUTS if self.x is None else self.x.shape[1]

    @property
    def num_outputs(self) -> int:
        return _NUM_OUTPUTS if self.y is None else int(self.y.max()) + 1


def _read_config(path: Path) -> tuple[dict[str, Any], Any]:
    """The [network] table, and the tables [[layers]], None if there are none."""
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"`config`: cannot read {path}: {error}") from error
    table = content.get("network", {})
    if not isinstance(table, dict) or not content or content.keys() - {"network", "layers"}:
        raise ValueError(f"`config`: {path} must hold a table [network], or tables [[layers]], or both, and no others.")
    given = {key: _config_value(key, value) for key, value in table.items()}
    return given | ({"data": path.parent / given["data"]} if "data" in given else {}), content.get("layers")


_KINDS = {int: "an integer", float: "a number", str: "a string", Path: "a string"}


def _config_value(key: str, value: Any) -> Any:
    """Checked against the type that `Network` gives the flag; one value will do for a sequence of them."""
    hints = typing.get_type_hints(Network)
    if key not in hints:
        raise ValueError(f"`config`: unknown key `{key}` in [network]; it may hold {', '.join(hints)}.")
    kind = typing.get_args(hints[key])[0]  # the other is None
    many = typing.get_origin(kind) is tuple
    kind = typing.get_args(kind)[0] if many else kind
    values = tuple(value) if many and isinstance(value, list) else (value,)
    check_value(key, values, kind, "[network]")
    return values if many else value


def check_value(key: str, values: tuple[Any, ...], kind: type, place: str) -> None:
    """**Raises:** `ValueError` naming the key of a TOML file and its place, if a value is not of this kind."""
    allowed: Any = {float: int | float, Path: str}.get(kind, kind)
    for value in values:
        too_large = isinstance(value, int) and abs(value) > 2**63
        if too_large or not isinstance(value, allowed) or isinstance(value, bool):
            got = "more digits than fit" if too_large else repr(value)
            raise ValueError(f"`config`: `{key}` in {place} must be {_KINDS[kind]}, got {got}.")


def _override(table: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """A flag also overrides the keys that say the same in another way."""
    rivals = {"widths": {"depth", "width"}, "depth": {"widths"}, "width": {"widths"}, "data": {"q0"}}
    gone = set().union(*(rivals.get(flag, set()) for flag in flags))
    return {key: value for key, value in table.items() if key not in gone} | flags


def _data(given: dict[str, Any], labelled: bool) -> Data:
    if "data" in given:
        x, y = read_data(given["data"], labelled)
        source = "given" if "q0" in given else f"measured on {given['data']}"
        return Data(x.reshape(len(x), -1), y, source, given["data"])
    if "q0" in given and not labelled:
        return Data(None, None, "given")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("The digits need scikit-learn: pip install 'jfree[cli]'.") from error

    x, y = load_digits(return_X_y=True)
    x = np.asarray(x, np.float64)
    deviation = x.std(0)
    x = (x - x.mean(0)) / np.where(deviation > 0, deviation, 1)
    return Data(x, np.asarray(y), "given" if "q0" in given else "measured on scikit-learn's digits")


def read_data(path: Path, labelled: bool = False, argument: str = "data") -> tuple[np.ndarray, np.ndarray | None]:
    """Inputs along a first axis, and their classes if they are `labelled`, which must be right."""
    try:
        with path.open("rb") as stream:
            file = np.load(stream)
            if isinstance(file, np.ndarray):
                raise TypeError("it is no .npz file")
            x = np.asarray(file["x"])
            x = x.astype(np.float64 if np.isrealobj(x) else x.dtype)
            y = np.asarray(file["y"]) if labelled else None
    except Exception as error:  # zipfile, pickle and NumPy each have their own
        arrays = "arrays x and y" if labelled else "array x"
        hint = "np.savez(path, x=x, y=y) makes such a file" if labelled else "np.savez(path, x=x) makes such a file"
        reason = "it is no .npz file" if "pickle" in str(error) else str(error)
        raise ValueError(f"`{argument}`: cannot read {arrays} from {path}: {reason}; {hint}.") from error
    if x.ndim < 2 or not x.size or x.dtype != np.float64:
        holds = f"finite real numbers, a row per input; its shape is {x.shape}"
        raise ValueError(f"`{argument}`: x in {path} must hold {holds}.")
    if not np.all(np.isfinite(x)):
        raise ValueError(f"`{argument}`: x in {path} must be finite; {np.sum(~np.isfinite(x))} of its numbers are not.")
    if not x.any():
        raise ValueError(f"`{argument}`: x in {path} must not be all 0.")
    if y is not None and (y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer)):
        got = f"its shape is {y.shape}, its dtype {y.dtype}"
        raise ValueError(f"`{argument}`: y in {path} must hold one class 0, 1, ... per row of x; {got}.")
    if y is not None and not 0 <= y.min() <= y.max() < _MOST_CLASSES:
        raise ValueError(f"`{argument}`: y in {path} must hold classes from 0 to {_MOST_CLASSES - 1}.")
    return x, y


def _mean_square(x: np.ndarray, path: Path | None) -> float:
    with np.errstate(over="ignore", under="ignore"):
        q0 = float(np.mean(np.square(x)))
    if not 0 < q0 < np.inf:
        raise ValueError(f"`data`: the mean square of x in {path} must lie in the range of floats, got {q0}.")
    return q0


def _widths(given: dict[str, Any], data: Data, fits: bool) -> list[float]:
    if "widths" in given:
        if given.keys() & {"depth", "width"}:
            raise ValueError("`widths` must not be given along with `depth` or `width`.")
        if fits and given["widths"][0] != data.num_inputs:
            raise ValueError(f"`widths` must start with {data.num_inputs}, the length of the inputs in `data`.")
        return [float(width) for width in given["widths"]]
    depth, width = given["depth"], given["width"]
    if not 1 <= depth <= DEEPEST or not width > 0:
        raise ValueError(f"`depth` must be from 1 to {DEEPEST} and `width` positive, got {depth} and {width}.")
    return [float(data.num_inputs), *[float(width)] * (depth - 1), float(data.num_outputs)]


def _each(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _unpacked(value: Any) -> Any:
    """What `MLP` takes for the values of a flag: one, names, or an array."""
    if not isinstance(value, tuple):
        return value
    return value[0] if len(value) == 1 else value if isinstance(value[0], str) else np.asarray(value, np.float64)
