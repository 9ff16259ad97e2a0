"""Compiling kernels for a GPU that is not there, with the compiler inside the triton wheel.

A file of kernels lists what it wants compiled in a function `<file>_variants`, and has one entry in `KERNEL_FILES`.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KERNEL_FILES = ("sparse_model.kernels.topk", "sparse_model.kernels.attention", "sparse_model.kernels.selection")
"""Every file with kernels: an entry here has its variants compiled by tests, benchmark and doctor."""

CAPABILITIES = (80, 90)
"""Compute capabilities that are compiled for: A100 and H100."""


@dataclass(frozen=True)
class Variant:
    """One kernel with the types of its arguments (pointers as `*bf16`) and its constants.

    `aligned` names arguments that are multiples of 16 in real calls, as the launcher would find them to be.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    aligned: tuple[str, ...] = ()


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes: registers and spilled bytes per thread, shared bytes per block."""

    registers: int
    spilled: int
    shared: int


def all_variants() -> Iterator[Variant]:
    """The variants of every file of kernels."""
    for name in KERNEL_FILES:
        yield from getattr(importlib.import_module(name), f"{name.rpartition('.')[2]}_variants")()


def compile_ahead(variant: Variant, capability: int) -> Resources:
    """Compile for a compute capability (90: H100); no GPU is needed.

    Raises whatever Triton raises where the kernel does not compile, and CalledProcessError where ptxas refuses it.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = variant.signature | dict.fromkeys(variant.constants, "constexpr")
    ordered = {name: signature[name] for name in variant.kernel.arg_names}
    aligned = [n for n, kind in ordered.items() if kind.startswith("*") or n in variant.aligned]
    attributes = {(variant.kernel.arg_names.index(n),): [["tt.divisibility", 16]] for n in aligned}
    source = ASTSource(variant.kernel, ordered, variant.constants, attributes)
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": variant.num_warps})
    return _resources(compiled.asm["ptx"], capability, int(compiled.metadata.shared))


def _resources(ptx: str, capability: int, shared: int) -> Resources:
    import triton

    assembler = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    suffix = "a" if capability >= 90 else ""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command = [assembler, "-v", f"--gpu-name=sm_{capability}{suffix}", source, "-o", Path(folder, "kernel.cubin")]
        told = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stderr
    spills = sum(map(int, re.findall(r"(\d+) bytes spill (?:stores|loads)", told)))
    registers = re.search(r"Used (\d+) registers", told)
    assert registers, told
    return Resources(int(registers[1]), spills, shared)
