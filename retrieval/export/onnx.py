"""A network as ONNX: one file for onnxruntime, OpenVINO, TensorRT or a browser, without Keras.

TensorFlow traces the graph and tf2onnx converts it. Three operations have handlers here. ONNX lacks two
of them, which are composed of others. tf2onnx writes the third, the choice between two tensors, as a
product, which would keep the NaN of nodata pixels. Before the file is kept, its vectors are compared
with the encoder's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX
from retrieval.errors import ConfigError, DependencyError, EncoderError
from retrieval.types import Encoder
from tfrecords.artifacts import writing_file
from tfrecords.artifacts.manifest import created_by
from tfrecords.schema import SCALED_OF_DN

OPSET = 17
"""Version of ONNX's operators: onnxruntime 1.12 and later read it."""
MAX_DIFFERENCE = 1e-4
"""Largest difference between a vector of the file and the encoder's."""
AXES = ("batch", "height", "width", "bands")
"""Names of the input's axes; the bands are a free axis in a model for any number of bands."""
CHECKED = ((4, 4), (6, 9))
"""Rows and columns, in units, of the pictures on which the file of a network is compared with it."""
Handlers = Mapping[str, tuple[Callable[..., None], list[str]]]


@dataclass(frozen=True)
class OnnxReport:
    """Result of `export_onnx`."""

    path: Path
    """The file."""
    encoder: str
    """Name of the encoder."""
    dim: int
    """Length of a vector."""
    opset: int
    """Version of ONNX's operators."""
    largest_difference: float
    """Largest difference between the file's vectors and the encoder's, on a picture with noise and nodata."""


def export_onnx(
    encoder: Encoder, out: str | Path, *, handlers: Handlers | None = None, overwrite: bool = False
) -> OnnxReport:
    """Write an encoder as ONNX.

    The input `scaled` is (batch, height, width, bands) float32 scaled, NaN = nodata, at least
    64 x 64 pixels. The output `vectors` is (batch, rows, cols, dim) of unit length, see
    `retrieval.types.Encoder.embed`. The file's metadata hold name, fingerprint, step and patch size.

    Args:
        encoder: an encoder that is a Keras model.
        out: the file; ends in `.onnx`.
        handlers: conversions of operations that tf2onnx lacks; None for `HANDLERS`.
        overwrite: replace an existing file.

    Returns:
        The file, and its largest difference from the encoder.

    Raises:
        ConfigError: the file has another ending.
        DependencyError: a converter is not installed, or Keras does not run on TensorFlow.
        EncoderError: not a Keras model, an operation that ONNX lacks, or different vectors.
        OutputExistsError: the file exists and `overwrite` is not set.
    """
    path = Path(out)
    if path.suffix != ".onnx":
        raise ConfigError(f"{path}: the ending is {path.suffix!r}. Expected .onnx.")
    if not hasattr(encoder, "model"):
        raise EncoderError(f"{encoder.name}: not a Keras model. Only Keras models can be exported as ONNX.")
    _check_tools()
    with writing_file(path, overwrite=overwrite) as partial:
        model = _convert(encoder, HANDLERS if handlers is None else handlers)
        partial.write_bytes(model.SerializeToString())
        largest = _difference(encoder, partial)
        if not largest <= MAX_DIFFERENCE:
            raise EncoderError(
                f"{encoder.name}: the vectors of the ONNX file differ from the encoder's by {largest:.2g}. "
                f"Expected at most {MAX_DIFFERENCE:g}. No file was written."
            )
    return OnnxReport(path, encoder.name, encoder.dim, OPSET, largest)


def _check_tools() -> None:
    missing = [name for name in ("onnx", "onnxruntime", "tf2onnx") if find_spec(name) is None]
    if missing:
        raise DependencyError(
            f"{', '.join(missing)}: not installed. Run pip install 'patch-retrieval[onnx]'."
        )
    import keras

    if keras.backend.backend() != "tensorflow":
        raise DependencyError(
            f"Keras runs on {keras.backend.backend()}. The ONNX export needs TensorFlow: set "
            "KERAS_BACKEND=tensorflow for this command."
        )


def _convert(encoder: Any, handlers: Handlers) -> Any:
    """Convert an encoder to a checked `onnx.ModelProto` with named axes."""
    import onnx
    import tensorflow as tf
    import tf2onnx

    bands = encoder.model.input_shape[-1]
    signature = [tf.TensorSpec((None, None, None, bands), tf.float32, name="scaled")]

    @tf.function(input_signature=signature)
    def forward(scaled: Any) -> dict[str, Any]:
        return {"vectors": encoder.model(scaled, training=False)}

    logging.getLogger("tf2onnx").setLevel(
        logging.CRITICAL
    )  # its error about missing operations is replaced below
    model, _ = tf2onnx.convert.from_function(
        forward, input_signature=signature, opset=OPSET, custom_op_handlers=dict(handlers)
    )
    unknown = sorted({node.op_type for node in model.graph.node if not onnx.defs.has(node.op_type)})
    if unknown:
        raise EncoderError(
            f"{encoder.name}: ONNX has no operation for {', '.join(unknown)}. Expected a model of operations "
            "that tf2onnx converts."
        )
    _describe(model, encoder, bands)
    onnx.checker.check_model(model)
    return model


def _describe(model: Any, encoder: Encoder, bands: int | None) -> None:
    """Name the free axes and add the encoder's metadata."""
    import onnx

    for value, names in ((model.graph.input[0], AXES), (model.graph.output[0], ("batch", "rows", "cols"))):
        for axis, name in zip(value.type.tensor_type.shape.dim, names, strict=False):
            if name != "bands" or bands is None:
                axis.dim_param = name
    model.producer_name = created_by()
    model.doc_string = "Vectors of the 64 x 64 windows of images: unit length, inner product is cosine."
    facts = {"encoder": encoder.name, "fingerprint": encoder.fingerprint, "step_px": encoder.step_px}
    facts |= {"patch_px": PATCH_PX, "dim": encoder.dim, "pixels": SCALED_OF_DN}
    onnx.helper.set_model_props(model, {name: str(fact) for name, fact in facts.items()})


def _difference(encoder: Encoder, path: Path) -> float:
    """Return the largest difference between the file's vectors and the encoder's; NaN if one is NaN."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    bands = session.get_inputs()[0].shape[-1]
    picture = _picture(bands if isinstance(bands, int) else 4)
    (vectors,) = session.run(["vectors"], {"scaled": picture})
    return float(np.abs(vectors - encoder.embed(picture)).max())


def _picture(bands: int) -> NDArray[np.float32]:
    """Return (2, 136, 144, bands): strong and weak noise, nodata, a missing band, a flat corner."""
    picture = np.random.default_rng(0).uniform(-1, 1, (2, 136, 144, bands)).astype(np.float32)
    picture[1] *= 0.01
    picture[0, :40, :50] = np.nan
    picture[1, 30:60, :, 0] = np.nan
    picture[1, 60:, 70:] = 0.25
    return picture


# --- networks of tasks ---------------------------------------------------------------------------


@dataclass(frozen=True)
class NetworkReport:
    """Result of `export_network`."""

    path: Path
    """The file."""
    unit_px: int
    """Rows and columns of an input are multiples of it."""
    opset: int
    """Version of ONNX's operators."""
    largest_difference: float
    """Largest difference between the file's logits and the network's, relative to their spread."""


def export_network(
    network: Any,
    out: str | Path,
    unit_px: int,
    facts: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
) -> NetworkReport:
    """Write the network of a task as ONNX: input `pixels`, output `logits`, images of any number and size.

    Args:
        network: a `keras.Model` of one input (n, y, x, b) and one output.
        out: the file; ends in `.onnx`.
        unit_px: rows and columns of an input are multiples of it.
        facts: texts for the file's metadata, such as classes and bands.
        overwrite: replace an existing file.

    Raises:
        ConfigError: the file has another ending.
        DependencyError: a converter is not installed, or Keras does not run on TensorFlow.
        EncoderError: the file's answers differ from the network's.
        OutputExistsError: the file exists and `overwrite` is not set.
    """
    path = Path(out)
    if path.suffix != ".onnx":
        raise ConfigError(f"{path}: the ending is {path.suffix!r}. Expected .onnx.")
    _check_tools()
    with writing_file(path, overwrite=overwrite) as partial:
        model = _convert_network(network)
        _add_facts(model, {"unit_px": unit_px} | dict(facts or {}))
        partial.write_bytes(model.SerializeToString())
        largest = max(_network_difference(network, partial, (h * unit_px, w * unit_px)) for h, w in CHECKED)
        if not largest <= MAX_DIFFERENCE:
            raise EncoderError(
                f"{path}: the logits of the ONNX file differ from the network's by {largest:.2g}. Expected "
                f"at most {MAX_DIFFERENCE:g}. No file was written."
            )
    return NetworkReport(path, unit_px, OPSET, largest)


def _convert_network(network: Any) -> Any:
    """Convert a network to a checked `onnx.ModelProto` with named axes."""
    import onnx
    import tensorflow as tf
    import tf2onnx

    traced = _of_any_size(network)
    signature = [tf.TensorSpec((None, None, None, network.input_shape[-1]), tf.float32, name="pixels")]

    @tf.function(input_signature=signature)
    def forward(pixels: Any) -> dict[str, Any]:
        return {"logits": traced(pixels, training=False)}

    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    model, _ = tf2onnx.convert.from_function(forward, input_signature=signature, opset=OPSET)
    for value in (*model.graph.input, *model.graph.output):
        for axis, name in zip(value.type.tensor_type.shape.dim, AXES[:3], strict=False):
            axis.dim_param = name
    onnx.checker.check_model(model)
    return model


def _of_any_size(network: Any) -> Any:
    """Return a network of the same weights whose enlargements read the size from the pixels.

    Keras enlarges by the size that it knows when it traces, so its own layers would fix it.
    """
    import keras
    import tensorflow as tf

    class Enlargement(keras.layers.Layer):
        def __init__(self, of: Any) -> None:
            super().__init__(name=of.name)
            self.factor, self.is_nearest = of.size, of.interpolation == "nearest"

        def call(self, pixels: Any) -> Any:
            size = tf.shape(pixels)[1:3] * self.factor
            if self.is_nearest:
                return tf.raw_ops.ResizeNearestNeighbor(images=pixels, size=size)
            return tf.image.resize(pixels, size)

        def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
            return shape[0], None, None, shape[3]

    def copied(layer: Any) -> Any:
        if isinstance(layer, keras.layers.UpSampling2D):
            return Enlargement(layer)
        return type(layer).from_config(layer.get_config())

    copy = keras.models.clone_model(network, clone_function=copied, recursive=True)
    copy.set_weights(network.get_weights())
    for layer in copy.layers:  # tensors of a layer would become inputs of the file, arrays become constants
        if isinstance(layer, keras.layers.Normalization):
            layer.mean, layer.variance = np.asarray(layer.mean), np.asarray(layer.variance)
    return copy


def _add_facts(model: Any, facts: Mapping[str, Any]) -> None:
    """Add metadata and the name of the program."""
    import onnx

    model.producer_name = created_by()
    onnx.helper.set_model_props(model, {name: str(fact) for name, fact in facts.items()})


def _network_difference(network: Any, path: Path, size: tuple[int, int]) -> float:
    """Return the largest difference between the file's logits and the network's, relative to their spread."""
    import onnxruntime

    pixels = np.random.default_rng(0).uniform(0, 1, (2, *size, network.input_shape[-1])).astype(np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"pixels": pixels})
    expected = np.asarray(network(pixels, training=False))
    return float(np.abs(found - expected).max() / max(float(expected.std()), 1e-6))


# --- handlers of operations --------------------------------------------------------------------


def _one(graph: Any, name: str) -> str:
    return graph.make_const(f"{name}_one", np.ones((), np.float32)).output[0]


def _log1p(graph: Any, node: Any, name: str, _: Any) -> None:
    """Write log(1 + x)."""
    source = node.input[0]
    _replace(graph, node, "Log", lambda: [graph.make_node("Add", [source, _one(graph, name)]).output[0]])


def _erfc(graph: Any, node: Any, name: str, _: Any) -> None:
    """Write 1 - erf(x)."""
    source = node.input[0]
    _replace(graph, node, "Sub", lambda: [_one(graph, name), graph.make_node("Erf", [source]).output[0]])


def _select(graph: Any, node: Any, name: str, _: Any) -> None:
    """Write the choice between two tensors."""
    inputs = list(node.input)
    _replace(graph, node, "Where", lambda: inputs)


def _replace(graph: Any, node: Any, kind: str, inputs: Callable[[], list[str]]) -> None:
    """Replace a node with an ONNX operation."""
    outputs = list(node.output)
    shapes, dtypes = [graph.get_shape(o) for o in outputs], [graph.get_dtype(o) for o in outputs]
    graph.remove_node(node.name)
    graph.make_node(kind, inputs(), outputs=outputs, shapes=shapes, dtypes=dtypes)


HANDLERS: Handlers = {
    "Erfc": (_erfc, []),
    "Log1p": (_log1p, []),
    "SelectV2": (_select, []),
}
"""Conversions of operations that tf2onnx lacks, or writes in a way that keeps NaN."""
