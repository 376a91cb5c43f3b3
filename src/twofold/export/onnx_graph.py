"""A traced restorer as an ONNX model, with inputs that may be left out."""

from __future__ import annotations

import json
import logging
import operator
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twofold.contracts import TwofoldError
from twofold.export.network import ESTIMATE, Whole

OPSET = 20
"""The first with the DFT of a whole axis; ONNX Runtime has it since 1.17."""
_DEFAULTS: dict[str, NDArray[np.float32]] = {
    "guidance": np.full((1, 1, 1, 1), ESTIMATE, np.float32),
    "strength": np.ones(1, np.float32),
    "context": np.full((1, 1), np.nan, np.float32),
}
"""What an input that may be left out is then; each is broadcast."""
OPTIONAL = frozenset(_DEFAULTS)
_AXES = {
    "guidance": ("guidance_batch", 1, "guidance_height", "guidance_width"),
    "strength": (1,),
    "context": ("context_batch", "context_length"),
    "observed": ("batch", None, "height", "width"),
    "kernel": (1, 1, "kernel_height", "kernel_width"),
    "restored": ("batch", None, "height", "width"),
    "guidance_used": ("batch", 1, "height", "width"),
    "context_used": ("batch", None),
}
"""Names of the axes of free length; None leaves a length as the network has it."""


def to_onnx(program: torch.export.ExportedProgram, whole: Whole, facts: Mapping[str, Any]) -> Any:
    """`onnx.ModelProto` of what `network.trace` made of `whole`; `facts` are kept in its metadata.

    Raises: TwofoldError where a library is missing.
    """
    onnx = installed("onnx")
    script = installed("onnxscript").opset20

    def floor_divided(x: Any, y: Any) -> Any:
        """ONNX rounds a quotient of integers towards zero, Python down: (x - x mod y) / y is the same in both."""
        return script.Div(script.Sub(x, script.Mod(x, y)), y)

    with quiet():
        made = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            output_names=whole.outputs(),
            custom_translation_table={operator.floordiv: floor_divided},
            verbose=False,
        )
    assert made is not None
    model = made.model_proto
    # The sizes that the exporter notes for the two halves of a Fourier transform are wrong; runtimes infer them again.
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        axes = value.type.tensor_type.shape.dim
        for axis, name in zip(axes, _AXES[value.name], strict=True):
            if isinstance(name, str):
                axis.dim_param = name
            elif name is not None:
                axis.dim_value = name
    for value in model.graph.input:
        if value.name in _DEFAULTS:
            model.graph.initializer.append(onnx.numpy_helper.from_array(_DEFAULTS[value.name], value.name))
    note(model, facts)
    return model


def note(model: Any, facts: Mapping[str, Any]) -> None:
    """Keeps `facts` in the metadata of an ONNX model, under "twofold", in place of earlier ones."""
    del model.metadata_props[:]
    model.metadata_props.add(key="twofold", value=json.dumps(facts))
    model.producer_name, model.producer_version = "twofold", str(facts["written_by"])


class Session:
    """An ONNX model in ONNX Runtime on the processor: named tensors → outputs in their order.

    model: its bytes. threads: of one computation.
    """

    def __init__(self, model: bytes, *, threads: int = 1) -> None:
        runtime = installed("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # it warns of every input that may be left out
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        self.session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def __call__(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        found = self.session.run(None, {name: value.numpy() for name, value in inputs.items()})
        return [torch.from_numpy(value) for value in found]


class OpenVinoSession:
    """The same in OpenVINO, for a model all of whose inputs are given. bfloat16: rounds inside convolutions to it."""

    def __init__(self, model: bytes, *, threads: int = 1, bfloat16: bool = False) -> None:
        openvino = installed("openvino", "openvino")
        core = openvino.Core()
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = core.compile_model(core.read_model(model), "CPU", settings)
        self.request = compiled.create_infer_request()
        self.outputs = len(compiled.outputs)

    def __call__(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        self.request.infer({name: value.numpy() for name, value in inputs.items()})
        # Copied: the next call overwrites them.
        return [torch.from_numpy(self.request.get_output_tensor(at).data.copy()) for at in range(self.outputs)]


@contextmanager
def quiet() -> Iterator[None]:
    """Silences what libraries say of their own deprecations, of torchvision, and of inputs that may be left out."""
    runtime = installed("onnxruntime")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    runtime.set_default_logger_severity(3)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        runtime.set_default_logger_severity(2)
        logging.disable(before)


def installed(name: str, extra: str = "onnx") -> Any:
    """Raises: TwofoldError saying how to install what is missing."""
    try:
        return import_module(name)
    except ImportError as error:
        raise TwofoldError(f"{name} is not installed; pip install 'twofold[{extra}]'") from error
