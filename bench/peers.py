"""Other libraries, raced with `--peers` where they are installed. Conversions from and to NumPy are not timed."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib.metadata import version
from typing import Any

import numpy as np

from .cases import PIECE, TOP_K, TOP_P, Array, Case, Operation, Workload
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
            case "softmax_in_pieces":
                return partial(self._in_pieces, x, self._tensor(work.out))
            case "entropy":
                return partial(self._entropy, x, case.axis)
            case "log_softmax_at":
                return partial(self._at, x, targets.unsqueeze(case.axis), case.axis)
            case "log_softmax_top_k":
                return partial(self._top, x, case.k, case.axis)
            case "sample" | "sample_top_k" | "sample_top_p":
                return partial(getattr(self, f"_{case.operation}"), x.movedim(case.axis, -1).reshape(-1, case.classes))
            case "softmax_grad" | "log_softmax_grad":
                forward = case.operation.removesuffix("_grad")
                y = getattr(torch, forward)(x, case.axis)
                backward = getattr(torch.ops.aten, f"_{forward}_backward_data")
                return partial(backward, self._tensor(work.dy), y, case.axis, x.dtype)
            case "kl_divergence":
                return partial(self._divergence, x, self._tensor(work.dy), case.axis)
            case "kl_divergence_with_grad":
                q = self._tensor(work.dy).requires_grad_()

                def divergence_and_gradient() -> Any:
                    divergence = self._divergence(x, q, case.axis)
                    return divergence.detach(), *torch.autograd.grad(divergence, q)

                return divergence_and_gradient
            case "cross_entropy_with_grad_hess":
                return partial(self._with_hessian, x, targets.unsqueeze(case.axis), case.axis)
            case _:
                # torch expects the classes on axis 1.
                x = x.movedim(case.axis, 1) if x.ndim > 1 else x
                loss_of = partial(functional.cross_entropy, x, targets, reduction=case.reduction)
                if case.operation == "cross_entropy":
                    return loss_of
                return self._with_gradient(loss_of, x, case.axis)

    @staticmethod
    def _in_pieces(x: Any, out: Any) -> Any:
        import torch

        pieces = x.split(PIECE, -1)
        total = torch.stack([piece.logsumexp(-1) for piece in pieces]).logsumexp(0).unsqueeze(-1)
        for piece, to in zip(pieces, out.split(PIECE, -1), strict=True):
            torch.exp(piece - total, out=to)
        return out

    @staticmethod
    def _entropy(x: Any, axis: int) -> Any:
        from torch.distributions import Categorical

        return Categorical(logits=x.movedim(axis, -1), validate_args=False).entropy()

    @staticmethod
    def _divergence(x: Any, y: Any, axis: int) -> Any:
        from torch.nn import functional

        logp, logq = x.log_softmax(axis), y.log_softmax(axis)
        return functional.kl_div(logq, logp, reduction="sum", log_target=True) * (x.shape[axis] / x.numel())

    @staticmethod
    def _with_hessian(x: Any, targets: Any, axis: int) -> Any:
        logp = x.log_softmax(axis)
        p = logp.exp()
        share = x.shape[axis] / x.numel()
        hess = p * (1 - p) * share
        grad = p.mul_(share).scatter_add_(axis, targets, p.new_full((), -share).expand(targets.shape))
        return -logp.gather(axis, targets).mean(), grad, hess

    @staticmethod
    def _at(x: Any, targets: Any, axis: int) -> Any:
        return (x.gather(axis, targets) - x.logsumexp(axis, keepdim=True)).squeeze(axis)

    @staticmethod
    def _top(x: Any, k: int, axis: int) -> Any:
        """Without the indices, which differ where scores are equal."""
        return x.topk(k, axis).values - x.logsumexp(axis, keepdim=True)

    @staticmethod
    def _sample(x: Any) -> Any:
        import torch

        return torch.multinomial(torch.softmax(x, -1), 1)

    @staticmethod
    def _sample_top_k(x: Any) -> Any:
        import torch

        scores, classes = torch.topk(x, TOP_K)
        return classes.gather(-1, torch.multinomial(torch.softmax(scores, -1), 1))

    @staticmethod
    def _sample_top_p(x: Any) -> Any:
        import torch

        scores, classes = torch.sort(x, descending=True)
        p = torch.softmax(scores, -1, dtype=torch.float32)
        p = p.masked_fill(p.cumsum(-1) - p >= TOP_P, 0)
        return classes.gather(-1, torch.multinomial(p, 1))

    @staticmethod
    def _with_gradient(loss_of: Call, x: Any, axis: int) -> Call:
        import torch

        x.requires_grad_()

        def loss_and_gradient() -> Any:
            loss = loss_of()
            (grad,) = torch.autograd.grad(loss, x, torch.ones_like(loss))
            return loss.detach(), grad.movedim(1, axis)

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


class TorchCompiled(Torch):
    """The functions of `Torch`, compiled for each shape; without `out=`."""

    name = "torch.compile"

    def prepare(self, work: Workload) -> Call:
        import torch
        from torch.nn import functional

        case = work.case
        match case.operation:
            case "softmax" | "log_softmax" | "logsumexp":
                return self._compiled(getattr(torch, case.operation), self._tensor(work.x), case.axis)
            case "entropy":
                return self._compiled(self._entropy, self._tensor(work.x), case.axis)
            case "log_softmax_at":
                targets = torch.from_numpy(work.targets).unsqueeze(case.axis)
                return self._compiled(self._at, self._tensor(work.x), targets, case.axis)
            case "log_softmax_top_k":
                return self._compiled(self._top, self._tensor(work.x), case.k, case.axis)
            case "kl_divergence":
                return self._compiled(self._divergence, self._tensor(work.x), self._tensor(work.dy), case.axis)
            case "cross_entropy_with_grad_hess":
                targets = torch.from_numpy(work.targets).unsqueeze(case.axis)
                return self._compiled(self._with_hessian, self._tensor(work.x), targets, case.axis)
            case "cross_entropy" | "cross_entropy_with_grad" if case.reduction == "mean":
                x = self._tensor(work.x)
                x = x.movedim(case.axis, 1) if x.ndim > 1 else x
                x.requires_grad_(case.operation == "cross_entropy_with_grad")
                loss_of = self._compiled(functional.cross_entropy, x, torch.from_numpy(work.targets))
                if case.operation == "cross_entropy":
                    return loss_of
                return self._with_gradient(loss_of, x, case.axis)
            case _:
                raise Unsupported(f"{case.operation} is not compiled")

    @staticmethod
    def _compiled(function: Callable[..., Any], *arguments: Any) -> Call:
        import torch

        torch.compiler.reset()  # otherwise torch compiles code for any shape after a few shapes
        return partial(torch.compile(function, dynamic=False), *arguments)


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
            raise Unsupported("ONNX expects the classes on axis 1")
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
    """Compiled by XLA; the clock stops when the result is ready."""

    name = "JAX"
    package = "jax"

    def start(self, threads: int) -> None:
        # XLA reads the size of its pool from here when it is loaded, and has no flag for it.
        os.environ["NPROC"] = str(threads)
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        import jax

        jax.config.update("jax_enable_x64", True)

    def prepare(self, work: Workload) -> Call:
        import jax

        case = work.case
        compiled = self._compiled(case.operation, case.axis, case.reduction, case.k)
        if case.operation == "vocabulary_step":
            arrays = [work.features, work.weights, work.targets]
        else:
            arrays = [work.x, work.targets] if case.has_loss or case.operation == "log_softmax_at" else [work.x]
        if case.operation in ("softmax_grad", "log_softmax_grad"):
            arrays = [np.asarray(getattr(jax.nn, case.operation.removesuffix("_grad"))(work.x, case.axis)), work.dy]
        if case.draws:
            arrays.append(jax.random.key(0))
        if case.diverges:
            arrays.append(work.dy)
        inputs = [jax.numpy.asarray(array) for array in arrays]
        return lambda: jax.block_until_ready(compiled(*inputs))

    @staticmethod
    @cache  # so that XLA compiles only once for each shape and dtype
    def _compiled(operation: Operation, axis: int, reduction: str, k: int) -> Callable[..., Any]:
        import jax
        import jax.numpy as jnp

        def at(x: Any, targets: Any) -> Any:
            logp = jax.nn.log_softmax(x, axis=axis)
            return jnp.take_along_axis(logp, jnp.expand_dims(targets, axis), axis=axis).squeeze(axis)

        def top(x: Any) -> Any:
            largest = jax.lax.top_k(jnp.moveaxis(x, axis, -1), k)[0]
            return jnp.moveaxis(largest, -1, axis) - jax.nn.logsumexp(x, axis=axis, keepdims=True)

        def losses(x: Any, targets: Any) -> Any:
            return -at(x, targets)

        def loss(x: Any, targets: Any) -> Any:
            return losses(x, targets).mean()

        def losses_and_gradient(x: Any, targets: Any) -> Any:
            each, pullback = jax.vjp(partial(losses, targets=targets), x)
            return each, pullback(jnp.ones_like(each))[0]

        def entropy(x: Any) -> Any:
            logp = jax.nn.log_softmax(x, axis=axis)
            p = jnp.exp(logp)
            return -jnp.where(p == 0, 0, p * logp).sum(axis)

        def divergence(x: Any, y: Any) -> Any:
            logp, logq = jax.nn.log_softmax(x, axis=axis), jax.nn.log_softmax(y, axis=axis)
            return (jnp.exp(logp) * (logp - logq)).sum(axis).mean()

        def with_hessian(x: Any, targets: Any) -> Any:
            value, grad = jax.value_and_grad(loss)(x, targets)
            p = jax.nn.softmax(x, axis=axis)
            return value, grad, p * (1 - p) / targets.size

        def softmax_grad(y: Any, dy: Any) -> Any:
            return y * (dy - (y * dy).sum(axis, keepdims=True))

        def log_softmax_grad(y: Any, dy: Any) -> Any:
            return dy - jnp.exp(y) * dy.sum(axis, keepdims=True)

        def step(features: Any, weights: Any, targets: Any) -> Any:
            return loss(features @ weights.T, targets)

        def sample(x: Any, key: Any) -> Any:
            return jax.random.categorical(key, x, axis)

        def sample_top_k(x: Any, key: Any) -> Any:
            scores, classes = jax.lax.top_k(jnp.moveaxis(x, axis, -1), TOP_K)
            drawn = jax.random.categorical(key, scores)
            return jnp.take_along_axis(classes, drawn[..., None], -1)

        def sample_top_p(x: Any, key: Any) -> Any:
            x = jnp.moveaxis(x, axis, -1)
            classes = jnp.argsort(-x, -1)
            scores = jnp.take_along_axis(x, classes, -1)
            p = jax.nn.softmax(scores.astype(jnp.float32))
            drawn = jax.random.categorical(key, jnp.where(jnp.cumsum(p, -1) - p < TOP_P, scores, -jnp.inf))
            return jnp.take_along_axis(classes, drawn[..., None], -1)

        function: Callable[..., Any]
        match operation:
            case "softmax" | "log_softmax" | "logsumexp":
                function = partial(getattr(jax.nn, operation), axis=axis)
            case "entropy":
                function = entropy
            case "log_softmax_at":
                function = at
            case "log_softmax_top_k":
                function = top
            case "sample":
                function = sample
            case "sample_top_k":
                function = sample_top_k
            case "sample_top_p":
                function = sample_top_p
            case "cross_entropy":
                function = loss if reduction == "mean" else losses
            case "cross_entropy_with_grad":
                function = jax.value_and_grad(loss) if reduction == "mean" else losses_and_gradient
            case "cross_entropy_with_grad_hess":
                function = with_hessian
            case "kl_divergence":
                function = divergence
            case "kl_divergence_with_grad":
                function = jax.value_and_grad(divergence, argnums=1)
            case "softmax_grad":
                function = softmax_grad
            case "log_softmax_grad":
                function = log_softmax_grad
            case "vocabulary_step":
                function = jax.value_and_grad(step, argnums=(0, 1))
            case "softmax_in_pieces":
                raise Unsupported("jax has no function that merges totals")
        compiled: Callable[..., Any] = jax.jit(function)
        return compiled

    def arrays(self, result: Any) -> tuple[Array, ...]:
        parts: list[Any] = []
        for part in result if isinstance(result, tuple) else (result,):
            parts += part if isinstance(part, tuple) else (part,)
        return tuple(np.asarray(part) for part in parts)


class Numba(Contender):
    """Parallel kernels with fastmath, as a skilled user writes them, over (outer, classes, inner)."""

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
        if case.diverges:
            return partial(function, x, work.dy.reshape(shape))
        if case.has_loss or case.operation == "log_softmax_at":
            targets = np.ascontiguousarray(work.targets).reshape((outer,) if rows else (outer, -1))
            if case.operation in ("cross_entropy", "log_softmax_at"):
                return partial(function, x, targets)
            grad = x if case.in_place else np.empty_like(x)
            if case.has_hess:
                hess = np.empty_like(x)
                return lambda: (function(x, targets, grad, hess), grad, hess)
            return lambda: (function(x, targets, grad), grad)
        out = np.empty(work.result_shape, x.dtype) if not work.preallocates else work.out
        flat = out.reshape(shape[:1] + shape[2:] if case.reduces else shape)
        inputs = [x]
        if case.operation in ("softmax_grad", "log_softmax_grad"):
            y = np.empty_like(x)
            (kernels.ROWS if rows else kernels.COLUMNS)[case.operation.removesuffix("_grad")](x, y)
            inputs = [y, work.dy.reshape(shape)]

        def run() -> Array:
            function(*inputs, flat)
            return out

        return run


class LiteRt(Contender):
    """A model of one operator, run by XNNPACK, its input filled in before the clock starts."""

    name = "LiteRT"
    package = "ai_edge_litert"

    def version(self) -> str:
        return version("ai-edge-litert")

    def prepare(self, work: Workload) -> Call:
        from ai_edge_litert.interpreter import Interpreter

        case = work.case
        if case.operation not in ("softmax", "log_softmax") or case.dtype != "float32" or case.strided:
            raise Unsupported(f"no operator for {case.name}")
        with hushed():  # it announces each interpreter
            interpreter = Interpreter(model_content=self._model(case), num_threads=self.threads)
            interpreter.allocate_tensors()
        interpreter.set_tensor(0, work.x)
        self._interpreter = interpreter
        invoke: Call = interpreter.invoke
        return invoke

    @staticmethod
    def _model(case: Case) -> bytes:
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema

        def tensor(name: str) -> Any:
            described = schema.TensorT()
            described.name, described.shape = name, list(case.shape)
            return described

        node, code, graph, model = schema.OperatorT(), schema.OperatorCodeT(), schema.SubGraphT(), schema.ModelT()
        node.inputs, node.outputs = [0], [1]
        if case.operation == "softmax":
            code.builtinCode = schema.BuiltinOperator.SOFTMAX
            node.builtinOptionsType, node.builtinOptions = (
                schema.BuiltinOptions.SoftmaxOptions,
                schema.SoftmaxOptionsT(),
            )
            node.builtinOptions.beta = 1.0
        else:
            code.builtinCode = schema.BuiltinOperator.LOG_SOFTMAX
            node.builtinOptionsType = schema.BuiltinOptions.LogSoftmaxOptions
            node.builtinOptions = schema.LogSoftmaxOptionsT()
        code.deprecatedBuiltinCode, code.version = code.builtinCode, 1
        graph.tensors, graph.inputs, graph.outputs, graph.operators = [tensor("x"), tensor("y")], [0], [1], [node]
        model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [schema.BufferT()]
        builder = flatbuffers.Builder()
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def arrays(self, result: Any) -> tuple[Array, ...]:
        return (self._interpreter.get_tensor(1),)


class OpenVino(Contender):
    """A compiled graph that reads and writes arrays which exist before the clock starts."""

    name = "OpenVINO"
    package = "openvino"

    def start(self, threads: int) -> None:
        super().start(threads)
        # If it finds this module, `import openvino` reports its use over the network, from a forked process.
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

    def prepare(self, work: Workload) -> Call:
        import openvino
        from openvino import opset13 as ops

        case = work.case
        if case.dtype not in ("float32", "float16"):
            raise Unsupported(f"{case.dtype}: OpenVINO has no arrays of bfloat16, and computes float64 in float32")
        axis = case.axis % len(case.shape)
        x = ops.parameter(list(case.shape), openvino.Type(work.dtype))
        match case.operation:
            case "softmax":
                y = ops.softmax(x, axis)
            case "log_softmax":
                y = ops.log_softmax(x, axis)
            case "logsumexp":
                peak = ops.reduce_max(x, axis, keep_dims=True)
                total = ops.log(ops.reduce_sum(ops.exp(ops.subtract(x, peak)), axis, keep_dims=True))
                y = ops.squeeze(ops.add(total, peak), axis)
            case _:
                raise Unsupported(f"OpenVINO has no {case.operation}")
        settings = {
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f16" if case.dtype == "float16" else "f32",  # else it may take bfloat16
        }
        request = openvino.Core().compile_model(openvino.Model([y], [x]), "CPU", settings).create_infer_request()
        result = np.zeros(work.result_shape, work.dtype)
        request.set_input_tensor(openvino.Tensor(work.x, shared_memory=True))
        request.set_output_tensor(openvino.Tensor(result, shared_memory=True))

        def run() -> Array:
            request.infer()
            return result

        return run


class ScikitLearn(Contender):
    """The loss of its multinomial regression, which takes C-ordered rows, and targets as numbers of the same dtype."""

    name = "scikit-learn"
    package = "sklearn"

    def version(self) -> str:
        return version("scikit-learn")

    def prepare(self, work: Workload) -> Call:
        from sklearn._loss import HalfMultinomialLoss

        case = work.case
        if case.operation not in ("cross_entropy", "cross_entropy_with_grad") or case.reduction != "mean":
            raise Unsupported(f"scikit-learn has no {case.operation}")
        if len(case.shape) != 2 or case.strided or case.dtype not in ("float32", "float64"):
            raise Unsupported(f"scikit-learn has no loss for {case.name}")
        loss = HalfMultinomialLoss(n_classes=case.classes)
        samples = case.shape[0]
        arguments: dict[str, Any] = {
            "y_true": work.targets.astype(work.dtype),
            "raw_prediction": work.x,
            "sample_weight": np.full(samples, 1 / samples, work.dtype),  # the mean
            "loss_out": np.empty(samples, work.dtype),
            "n_threads": self.threads,
        }
        if case.operation == "cross_entropy":
            return lambda: loss.loss(**arguments).sum()
        gradient = np.empty_like(work.x)

        def run() -> Any:
            losses, _ = loss.loss_gradient(gradient_out=gradient, **arguments)
            return losses.sum(), gradient

        return run


@contextmanager
def hushed() -> Iterator[None]:
    """Discard what a library writes to standard error past Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


PEERS: list[type[Contender]] = [Torch, TorchCompiled, OnnxRuntime, LiteRt, Jax, Numba, OpenVino, ScikitLearn]
