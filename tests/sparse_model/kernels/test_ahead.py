"""Kernels compile for GPUs that are not there, with the compiler inside the triton wheel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from triton import language as tl  # noqa: E402
from triton.compiler.errors import CompilationError  # noqa: E402

from sparse_model.kernels.ahead import CAPABILITIES, Variant, all_variants, compile_ahead  # noqa: E402

CHOSEN = (
    *(f"topk {kind} forward" for kind in ("bf16 64", "bf16 300", "bf16 2048", "bf16 16384", "fp16 2048", "fp32 16384")),
    *(f"gelu_topk {kind}" for kind in ("bf16 8192 forward", "bf16 8192 backward", "fp32 2048 forward")),
    *(f"norm_topk {kind}" for kind in ("bf16 2048 forward", "bf16 16384 backward", "fp32 64 forward")),
    *(f"add_topk {kind}" for kind in ("bf16 2048 forward", "bf16 300 backward")),
    *(
        f"attention bf16 {kind}"
        for kind in ("16 forward with a sink", "16 query grads", "16 key grads", "64 key grads")
    ),
    *(f"projection {kind}" for kind in ("minima of rows", "minima of columns", "bracket", "gather", "threshold")),
    "projection zero the rest, unaligned",
)
SPILLING = {"projection bracket": 128, "projection threshold": 64}
"""One program a matrix: the few bytes that it puts aside are nothing beside what it reads."""


@pytest.mark.parametrize("name", CHOSEN)
def test_compiles_for_both_generations_and_keeps_to_its_registers(name: str) -> None:
    (variant,) = [v for v in all_variants() if v.name == name]
    for capability in CAPABILITIES:
        taken = compile_ahead(variant, capability)
        assert 0 < taken.registers <= 255
        assert taken.shared <= 99 * 1024, "what a block may have on every GPU from sm_80 on"
        assert taken.spilled <= SPILLING.get(name, 0), (capability, taken)


@triton.jit
def _bits_of_16_or_32(x_ptr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    x = tl.load(x_ptr)
    if WIDE:
        x = tl.sum(_reinterpreted(tl.zeros([16], tl.float32) + x, 31), 0).to(tl.float32)
    tl.store(x_ptr, tl.sum(_reinterpreted(tl.zeros([16], tl.bfloat16), 15), 0).to(tl.float32) + x)


@triton.jit
def _reinterpreted(y, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    if BITS == 15:
        return y.to(tl.int16, bitcast=True).to(tl.int32) & 0x7FFF
    return y.to(tl.int32, bitcast=True) & 0x7FFFFFFF


def test_what_does_not_compile_is_seen() -> None:
    """The fault that kept every bfloat16 model from any GPU, and that Triton's interpreter does not see."""
    planted = Variant("planted", _bits_of_16_or_32, {"x_ptr": "*fp32"}, {"WIDE": False}, 1)
    with pytest.raises(CompilationError):
        compile_ahead(planted, 90)


def test_the_benchmark_prints_the_whole_matrix() -> None:
    script = Path(__file__).parents[3] / "benchmarks/kernels.py"
    done = subprocess.run(
        [sys.executable, script, "--compile", "topk bf16 64 "], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "topk bf16 64 forward" in done.stdout
    assert "registers" in done.stdout
