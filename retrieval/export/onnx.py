"""An encoder as ONNX: one file for onnxruntime, OpenVINO, TensorRT, a browser; no Keras, no TensorFlow.

The graph is what TensorFlow traces, converted by tf2onnx. Two operations have no counterpart there
and are written with those that ONNX has; a third, the choice between two tensors, is converted anew,
since tf2onnx writes it as a product, in which the NaN of unknown pixels would survive. The file is
compared with the encoder on a picture before it gets its name.
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

OPSET = 17
"""Version of ONNX's operations: onnxruntime 1.12 and later read it."""
SAME_VECTOR = 1e-4
"""A file is refused if one of its vectors differs from the encoder's by more than this."""
AXES = ("batch", "height", "width", "bands")
"""Names of the input's axes; those of a model for any number of bands are all free."""


@dataclass(frozen=True)
class OnnxReport:
    """What `export_onnx` wrote."""

    path: Path
    """The file."""
    encoder: str
    """Name of the encoder."""
    dim: int
    """Length of a vector."""
    opset: int
    """Version of ONNX's operations."""
    largest_difference: float
    """Between the file's vectors and the encoder's, on a picture with noise, holes and a flat corner."""


def export_onnx(encoder: Encoder, out: str | Path, *, overwrite: bool = False) -> OnnxReport:
    """Write an encoder as ONNX.

    Input `scaled`, (batch, height, width, bands) float32 in [-1, 1], NaN where nothing is known, any
    size from 64 x 64; output `vectors`, (batch, rows, cols, dim) of unit length, as
    `retrieval.types.Encoder.embed` has it. The file's metadata hold name, fingerprint, step and patch.

    Args:
        encoder: one that is a Keras model.
        out: the file; ends in `.onnx`.
        overwrite: replace a file that is there.

    Returns:
        What was written.

    Raises:
        ConfigError: another ending.
        DependencyError: what converts is not installed, or Keras does not run on TensorFlow.
        EncoderError: not a Keras model, an operation without a counterpart, or other vectors.
        OutputExistsError: the file is there and `overwrite` is not set.
    """
    path = Path(out)
    if path.suffix != ".onnx":
        raise ConfigError(f"{path}: received the ending {path.suffix!r}; expected .onnx")
    if not hasattr(encoder, "model"):
        raise EncoderError(f"{encoder.name} is no Keras model: only those can be written as ONNX")
    _check_tools()
    with writing_file(path, overwrite=overwrite) as partial:
        model = _converted(encoder)
        partial.write_bytes(model.SerializeToString())
        largest = _difference(encoder, partial)
        if not largest <= SAME_VECTOR:
            raise EncoderError(
                f"{encoder.name}: the ONNX file's vectors differ from the encoder's by {largest:.2g}; "
                f"expected at most {SAME_VECTOR:g}: nothing was written"
            )
    return OnnxReport(path, encoder.name, encoder.dim, OPSET, largest)


def _check_tools() -> None:
    missing = [name for name in ("onnx", "onnxruntime", "tf2onnx") if find_spec(name) is None]
    if missing:
        raise DependencyError(f"{', '.join(missing)} not installed: pip install 'patch-retrieval[onnx]'")
    import keras

    if keras.backend.backend() != "tensorflow":
        raise DependencyError(
            f"ONNX is written from TensorFlow's graph, and Keras runs on {keras.backend.backend()}: set "
            "KERAS_BACKEND=tensorflow for this command"
        )


def _converted(encoder: Any) -> Any:
    """The encoder as an `onnx.ModelProto`, checked, with its axes named."""
    import onnx
    import tensorflow as tf
    import tf2onnx

    bands = encoder.model.input_shape[-1]
    signature = [tf.TensorSpec((None, None, None, bands), tf.float32, name="scaled")]

    @tf.function(input_signature=signature)
    def forward(scaled: Any) -> dict[str, Any]:
        return {"vectors": encoder.model(scaled, training=False)}

    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)  # what has no counterpart is told by us
    model, _ = tf2onnx.convert.from_function(
        forward, input_signature=signature, opset=OPSET, custom_op_handlers=_HANDLERS
    )
    unknown = sorted({node.op_type for node in model.graph.node if not onnx.defs.has(node.op_type)})
    if unknown:
        raise EncoderError(
            f"{encoder.name}: ONNX has nothing for {', '.join(unknown)}; expected a model of operations that "
            "tf2onnx converts, as the shipped ones are"
        )
    _describe(model, encoder, bands)
    onnx.checker.check_model(model)
    return model


def _describe(model: Any, encoder: Encoder, bands: int | None) -> None:
    """Name the free axes and say whose file it is."""
    import onnx

    for value, names in ((model.graph.input[0], AXES), (model.graph.output[0], ("batch", "rows", "cols"))):
        for axis, name in zip(value.type.tensor_type.shape.dim, names, strict=False):
            if name != "bands" or bands is None:
                axis.dim_param = name
    model.producer_name = created_by()
    model.doc_string = "Vectors of the 64 x 64 windows of images: unit length, inner product is cosine."
    facts = {"encoder": encoder.name, "fingerprint": encoder.fingerprint, "step_px": encoder.step_px}
    facts |= {"patch_px": PATCH_PX, "dim": encoder.dim, "pixels": "clip(dn, 0, 4095) / 2047.5 - 1"}
    onnx.helper.set_model_props(model, {name: str(fact) for name, fact in facts.items()})


def _difference(encoder: Encoder, path: Path) -> float:
    """Largest difference between the file's vectors and the encoder's, NaN if one has no number."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    bands = session.get_inputs()[0].shape[-1]
    picture = _picture(bands if isinstance(bands, int) else 4)
    (vectors,) = session.run(["vectors"], {"scaled": picture})
    return float(np.abs(vectors - encoder.embed(picture)).max())


def _picture(bands: int) -> NDArray[np.float32]:
    """Two images, (2, 136, 144, bands): noise strong and weak, a hole, a missing band, a flat corner."""
    picture = np.random.default_rng(0).uniform(-1, 1, (2, 136, 144, bands)).astype(np.float32)
    picture[1] *= 0.01
    picture[0, :40, :50] = np.nan
    picture[1, 30:60, :, 0] = np.nan
    picture[1, 60:, 70:] = 0.25
    return picture


# --- operations that tf2onnx lacks, or writes so that NaN survives ------------------------------


def _one(graph: Any, name: str) -> str:
    return graph.make_const(f"{name}_one", np.ones((), np.float32)).output[0]


def _log1p(graph: Any, node: Any, name: str, _: Any) -> None:
    """log(1 + x)."""
    source = node.input[0]
    _replace(graph, node, "Log", lambda: [graph.make_node("Add", [source, _one(graph, name)]).output[0]])


def _erfc(graph: Any, node: Any, name: str, _: Any) -> None:
    """1 - erf(x)."""
    source = node.input[0]
    _replace(graph, node, "Sub", lambda: [_one(graph, name), graph.make_node("Erf", [source]).output[0]])


def _select(graph: Any, node: Any, name: str, _: Any) -> None:
    """One tensor where a condition holds, another elsewhere."""
    inputs = list(node.input)
    _replace(graph, node, "Where", lambda: inputs)


def _replace(graph: Any, node: Any, kind: str, inputs: Callable[[], list[str]]) -> None:
    """Put an operation of ONNX in a node's place."""
    outputs = list(node.output)
    shapes, dtypes = [graph.get_shape(o) for o in outputs], [graph.get_dtype(o) for o in outputs]
    graph.remove_node(node.name)
    graph.make_node(kind, inputs(), outputs=outputs, shapes=shapes, dtypes=dtypes)


_HANDLERS: Mapping[str, tuple[Callable[..., None], list[str]]] = {
    "Erfc": (_erfc, []),
    "Log1p": (_log1p, []),
    "SelectV2": (_select, []),
}
