"""A GPU that is not there: tensors that say they are on one, and refuse what a GPU refuses.

The values of a `Pretend` tensor are those of a CPU tensor that only it knows. Mixing it with a tensor that is on the
CPU, taking it for a numpy array, or drawing into it from a CPU generator fails as on a real GPU, and the code takes the
ways it takes there. So device mistakes are found on any machine; that a kernel is right or fast is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype as group_tensors_by_device_and_dtype
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

from sparse_model.model.norm import rms_norm
from sparse_model.sparsity.shard_projection import project_whole

GPU = torch.device("cuda", 0)
_aten = torch.ops.aten
_COPIES = {_aten.copy_.default, _aten._to_copy.default}
_INDEXED = {_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default}
_WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount", "equal"}
"""What has the program wait for the GPU, since its result, or how large that is, is not known before."""


class Pretend(Tensor):
    """A tensor that says it is on a GPU."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> Pretend:
        pretend: Pretend = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=inner.device,
        )
        pretend.inner = inner.detach()
        return pretend

    device = property(lambda self: GPU)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Pretend({self.inner})"

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> Pretend:
        return Pretend(inner["inner"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        _refuse_mixed(func, args, kwargs)
        waits.extend(name for name in [func.overloadpacket.__name__] if name in _WAITS)
        out = func(*_each(bare, args), **{key: _each(bare, value) for key, value in kwargs.items()})
        if out is None or (func in _COPIES and not isinstance(args[0], Pretend)):
            return out  # what is written to on the CPU stays there
        return return_and_correct_aliasing(func, args, kwargs, _each(pretended, out))


waits: list[str] = []
"""What the program has waited for since this was cleared."""


def _refuse_mixed(func: Any, args: Any, kwargs: Any) -> None:
    if func in _COPIES:
        return
    indices = args[1] if func in _INDEXED else ()  # these may be on the CPU, if what they look into is not
    if func in _INDEXED and isinstance(args[0], Pretend):
        args = (args[0], *args[2:])
    for leaf in _tensors((args, *kwargs.values())):
        if not isinstance(leaf, Pretend) and leaf.dim():
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, cuda:0; one is on cpu")
    waits.extend("boolean index" for index in indices if index is not None and index.dtype == torch.bool)


def bare(x: Any) -> Any:
    """A pretender's values; anything else as it is."""
    return x.inner if isinstance(x, Pretend) else x


def pretended(x: Any) -> Any:
    """A tensor as one of the GPU; anything else as it is."""
    return Pretend(x) if isinstance(x, Tensor) and not isinstance(x, Pretend) else x


def _each(change: Callable[[Any], Any], x: Any) -> Any:
    """What `change` makes of every part of lists and tuples. (torch's own way with trees takes most of the time.)"""
    return type(x)([_each(change, part) for part in x]) if isinstance(x, list | tuple) else change(x)


def _tensors(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, list | tuple):
        for part in x:
            yield from _tensors(part)


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, to_gpu: bool) -> Tensor:
        ctx.back = isinstance(x, Pretend)
        return Pretend(bare(x).clone()) if to_gpu else bare(x).clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return (pretended(grad) if ctx.back else bare(grad)), None


class _Factories(TorchDispatchMode):
    """What C++ makes of nothing while it works on the GPU's tensors is on the GPU."""

    on_gpu = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return _each(pretended, out) if self.on_gpu and not any(True for _ in _tensors(args)) else out


class PretendGpu(TorchFunctionMode):
    """While it is active, device "cuda" is a GPU of pretenders."""

    def __init__(self, factories: _Factories) -> None:
        super().__init__()
        self.factories = factories

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        ours = bool(args) and isinstance(args[0], Pretend)
        if name in ("to", "cpu", "cuda") and args and isinstance(args[0], Tensor):
            return self._moved(name, *args, **kwargs)
        if name in ("numpy", "__array__") and ours:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if name == "tolist" and ours:
            waits.append(name)
            return args[0].inner.tolist()
        if name == "new_tensor" and ours:
            return Pretend(func(args[0].inner, *args[1:], **kwargs))
        if kwargs.get("device") is not None:
            on_gpu = torch.device(kwargs.pop("device")).type == "cuda"
            generator = kwargs.get("generator")
            if on_gpu and generator is not None:
                raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
            requires_grad = kwargs.pop("requires_grad", False)
            made = func(*_each(bare, args), **kwargs, device="cpu")
            return (Pretend(made) if on_gpu else made).requires_grad_(requires_grad)
        if ours and kwargs.get("generator") is not None:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        outer, self.factories.on_gpu = (
            self.factories.on_gpu,
            any(isinstance(leaf, Pretend) for leaf in _tensors((args, *kwargs.values()))),
        )
        try:
            return func(*args, **kwargs)
        finally:
            self.factories.on_gpu = outer

    def _moved(self, name: str, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if name != "to":
            device, dtype = torch.device("cpu" if name == "cpu" else "cuda"), None
        elif args and isinstance(args[0], Tensor):
            device, dtype = args[0].device, args[0].dtype
        else:
            kwargs.pop("copy", None)
            device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if dtype is not None and dtype != x.dtype:
            x = torch.ops.aten._to_copy(x, dtype=dtype)
        to_gpu = x.is_cuda if device is None else device.type == "cuda"
        if to_gpu == x.is_cuda:
            return x
        waits.extend([] if to_gpu else ["copy to the CPU"])
        moved: Tensor = _Move.apply(x, to_gpu)  # type: ignore[no-untyped-call]
        return moved


def selected(x: Tensor, k: int, gelu: bool = False) -> Tensor:
    """What the GPU's AbsTopK gives, the plain way."""
    y = F.gelu(x) if gelu else x
    return y * ((y.abs() >= y.abs().topk(k).values[..., -1:]) & (y != 0))


def normed_and_selected(x: Tensor, k: int, dtype: torch.dtype) -> Tensor:
    return selected(rms_norm(x, dtype), k)


def selected_and_added(stream: Tensor, x: Tensor, k: int) -> Tensor:
    return stream + selected(x, k)


def _grouped(lists: list[list[Tensor]], with_indices: bool = False) -> Any:
    """Tensors by their device, which C++ would take for that of the values."""
    groups = group_tensors_by_device_and_dtype(lists, with_indices)
    ours = any(isinstance(leaf, Pretend) for leaf in _tensors(lists))
    return {(GPU if ours else device, dtype): found for (device, dtype), found in groups.items()}


@contextmanager
def pretend_gpu() -> Iterator[torch.device]:
    """A GPU while the context lasts; kernels that only a real one runs are replaced by the plain way."""
    with pytest.MonkeyPatch.context() as patch, _Factories() as factories, PretendGpu(factories):
        patch.setattr("sparse_model.model.abstopk._triton", selected)
        patch.setattr("sparse_model.model.abstopk._triton_norm", normed_and_selected)
        patch.setattr("sparse_model.model.abstopk._triton_add", selected_and_added)
        patch.setattr("sparse_model.model.norm._has_kernel", lambda x: False)
        patch.setattr("sparse_model.model.attention._has_kernel", lambda x, d_head: False)
        patch.setattr("circuit.ablated.compact._by_products", lambda x: False)
        patch.setattr("sparse_model.sparsity.projection._project_on_gpu", project_whole)
        # of a real one it would ask these
        patch.setattr(Tensor, "pin_memory", lambda rows: rows)
        patch.setattr("torch.cuda.get_device_properties", lambda device: SimpleNamespace(total_memory=80 * 2**30))
        # torch built for GPUs asks the driver whether a step is being captured
        check = "torch.optim.Optimizer._accelerator_graph_capture_health_check"
        patch.setattr(check, lambda self: None, raising=False)
        patch.setattr(Optimizer, "_group_tensors_by_device_and_dtype", staticmethod(_grouped))
        yield GPU
