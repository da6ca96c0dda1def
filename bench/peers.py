"""Other libraries, raced with `--peers` where they are installed. Arrays in, arrays out; conversions are not timed."""

import os
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np

from .cases import Array, Case, Operation, Workload
from .contenders import Call, Contender, Unsupported


class Torch(Contender):
    """Eager, with `out=` where the case preallocates; gradients by autograd."""

    name = "torch"
    package = "torch"

    def start(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)

    def prepare(self, work: Workload) -> Call:
        import torch
        from torch.nn import functional

        case = work.case
        targets = torch.from_numpy(work.targets)
        if case.operation == "vocabulary_step":
            features = torch.from_numpy(work.features.copy()).requires_grad_()
            weights = torch.from_numpy(work.weights.copy()).requires_grad_()

            def step() -> Any:
                loss = functional.cross_entropy(features @ weights.T, targets)
                return loss.detach(), *torch.autograd.grad(loss, [features, weights])

            return step
        x = self._tensor(work.x)
        out = {"out": self._tensor(work.out)} if work.preallocates else {}
        match case.operation:
            case "softmax" | "log_softmax" | "logsumexp":
                return partial(getattr(torch, case.operation), x, case.axis, **out)
            case "softmax_grad" | "log_softmax_grad":
                forward = case.operation.removesuffix("_grad")
                y = getattr(torch, forward)(x, case.axis)
                backward = getattr(torch.ops.aten, f"_{forward}_backward_data")
                return partial(backward, self._tensor(work.dy), y, case.axis, x.dtype)
            case _:
                # torch wants the classes second.
                x = x.movedim(case.axis, 1) if x.ndim > 1 else x
                loss_of = partial(functional.cross_entropy, x, targets, reduction=case.reduction)
                if case.operation == "cross_entropy":
                    return loss_of
                x.requires_grad_()

                def loss_and_gradient() -> Any:
                    loss = loss_of()
                    (grad,) = torch.autograd.grad(loss, x, torch.ones_like(loss))
                    return loss.detach(), grad.movedim(1, case.axis)

                return loss_and_gradient

    def arrays(self, result: Any) -> tuple[Array, ...]:
        return tuple(map(self._array, result if isinstance(result, tuple) else (result,)))

    # NumPy and torch exchange bfloat16 as bits.
    def _tensor(self, array: Array) -> Any:
        import torch

        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    def _array(self, tensor: Any) -> Array:
        import torch

        if tensor.dtype is torch.bfloat16:
            import ml_dtypes

            bits: Array = tensor.contiguous().view(torch.int16).numpy()
            return bits.view(ml_dtypes.bfloat16)
        array: Array = tensor.numpy()
        return array


class OnnxRuntime(Contender):
    """A model of one node, its input and output bound to arrays that exist before the clock starts."""

    name = "ONNX Runtime"
    package = "onnxruntime"

    def available(self) -> bool:
        return super().available() and OnnxModels.available()

    def prepare(self, work: Workload) -> Call:
        import onnxruntime

        case = work.case
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        model = OnnxModels.build(case)
        try:
            session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no public common type
            raise Unsupported(f"onnxruntime: {str(error).splitlines()[0][:120]}") from None
        binding = session.io_binding()
        binding.bind_cpu_input("x", work.x)
        if case.has_loss:
            binding.bind_cpu_input("targets", work.targets)
        result = np.empty(work.result_shape, work.x.dtype)
        value = onnxruntime.OrtValue.ortvalue_from_numpy(result)
        binding.bind_ortvalue_output("y", value)

        def run() -> Any:
            session.run_with_iobinding(binding)
            return value

        return run

    def arrays(self, result: Any) -> tuple[Array, ...]:
        return (result.numpy(),)


class OnnxModels:
    """One-node graphs for ONNX Runtime."""

    NODES = {  # noqa: RUF012
        "softmax": "Softmax",
        "log_softmax": "LogSoftmax",
        "logsumexp": "ReduceLogSumExp",
        "cross_entropy": "SoftmaxCrossEntropyLoss",
    }

    @staticmethod
    def available() -> bool:
        from importlib.util import find_spec

        return find_spec("onnx") is not None

    @classmethod
    def build(cls, case: Case) -> bytes:
        from onnx import TensorProto, checker, helper

        node = cls.NODES.get(case.operation)
        types = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "float16": TensorProto.FLOAT16}
        if node is None or case.dtype not in types:
            raise Unsupported(f"ONNX has no {case.operation} for {case.dtype}")
        if case.has_loss and case.axis % len(case.shape) != 1:
            raise Unsupported("ONNX has its classes second")
        dtype = types[case.dtype]
        inputs = [helper.make_tensor_value_info("x", dtype, case.shape)]
        axis = case.axis % len(case.shape)
        batch = case.batch
        initializers = []
        match node:
            case "Softmax" | "LogSoftmax":
                attributes: dict[str, Any] = {"axis": axis}
                shape: tuple[int, ...] = case.shape
            case "ReduceLogSumExp":
                attributes = {"keepdims": 0}
                initializers = [helper.make_tensor("axes", TensorProto.INT64, [1], [axis])]
                shape = batch
            case _:
                attributes = {"reduction": case.reduction}
                inputs.append(helper.make_tensor_value_info("targets", TensorProto.INT64, batch))
                shape = () if case.reduction == "mean" else batch
        names = [value.name for value in [*inputs, *initializers]]
        graph = helper.make_graph(
            [helper.make_node(node, names, ["y"], **attributes)],
            node,
            inputs,
            [helper.make_tensor_value_info("y", dtype, shape)],
            initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        checker.check_model(model)
        return bytes(model.SerializeToString())


class Jax(Contender):
    """Compiled by XLA; the clock stops when the result is there."""

    name = "JAX"
    package = "jax"

    def start(self, threads: int) -> None:
        if threads == 1:  # XLA takes every core or one; it is told before it is imported
            flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        import jax

        jax.config.update("jax_enable_x64", True)

    def prepare(self, work: Workload) -> Call:
        import jax

        case = work.case
        compiled = self._compiled(case.operation, case.axis, case.reduction)
        if case.operation == "vocabulary_step":
            arrays = [work.features, work.weights, work.targets]
        else:
            arrays = [work.x, work.targets] if case.has_loss else [work.x]
        inputs = [jax.numpy.asarray(array) for array in arrays]
        return lambda: jax.block_until_ready(compiled(*inputs))

    @staticmethod
    @cache  # XLA compiles for each shape and dtype that it meets, but once
    def _compiled(operation: Operation, axis: int, reduction: str) -> Callable[..., Any]:
        import jax
        import jax.numpy as jnp

        def losses(x: Any, targets: Any) -> Any:
            logp = jax.nn.log_softmax(x, axis=axis)
            return -jnp.take_along_axis(logp, jnp.expand_dims(targets, axis), axis=axis).squeeze(axis)

        def loss(x: Any, targets: Any) -> Any:
            return losses(x, targets).mean()

        def losses_and_gradient(x: Any, targets: Any) -> Any:
            each, pullback = jax.vjp(partial(losses, targets=targets), x)
            return each, pullback(jnp.ones_like(each))[0]

        def step(features: Any, weights: Any, targets: Any) -> Any:
            return loss(features @ weights.T, targets)

        function: Callable[..., Any]
        match operation:
            case "softmax" | "log_softmax" | "logsumexp":
                function = partial(getattr(jax.nn, operation), axis=axis)
            case "cross_entropy":
                function = loss if reduction == "mean" else losses
            case "cross_entropy_with_grad":
                function = jax.value_and_grad(loss) if reduction == "mean" else losses_and_gradient
            case "vocabulary_step":
                function = jax.value_and_grad(step, argnums=(0, 1))
            case _:
                raise Unsupported(f"no {operation} apart from its forward pass")
        compiled: Callable[..., Any] = jax.jit(function)
        return compiled

    def arrays(self, result: Any) -> tuple[Array, ...]:
        parts: list[Any] = []
        for part in result if isinstance(result, tuple) else (result,):
            parts += part if isinstance(part, tuple) else (part,)
        return tuple(np.asarray(part) for part in parts)


class Numba(Contender):
    """Parallel, fastmath kernels as a skilled user writes them, over (outer, classes, inner)."""

    name = "numba"
    package = "numba"

    def start(self, threads: int) -> None:
        import numba

        numba.set_num_threads(threads)

    def prepare(self, work: Workload) -> Call:
        case = work.case
        if case.dtype not in ("float32", "float64"):
            raise Unsupported("numba computes no half precision")
        from . import numba_kernels as kernels

        axis = case.axis % len(case.shape)
        outer, classes = int(np.prod(case.shape[:axis])), case.shape[axis]
        rows = axis == len(case.shape) - 1
        function = (kernels.ROWS if rows else kernels.COLUMNS).get(case.operation)
        if function is None or case.reduction != "mean":
            raise Unsupported(f"no kernel for {case.operation} along axis {case.axis}")
        shape = (outer, classes) if rows else (outer, classes, -1)
        x = work.x.reshape(shape)
        if case.has_loss:
            targets = np.ascontiguousarray(work.targets).reshape((outer,) if rows else (outer, -1))
            if case.operation == "cross_entropy":
                return partial(function, x, targets)
            grad = np.empty_like(x)
            return lambda: (function(x, targets, grad), grad)
        out = np.empty(work.result_shape, x.dtype) if not work.preallocates else work.out
        flat = out.reshape((-1,) if case.operation == "logsumexp" else shape)

        def run() -> Array:
            function(x, flat)
            return out

        return run


PEERS: list[type[Contender]] = [Torch, OnnxRuntime, Jax, Numba]
