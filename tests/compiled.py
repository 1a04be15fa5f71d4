"""Compiles every kernel for GPUs that need not be there: `python -m tests.compiled` prints what each of them takes.

One line a kernel, JSON: shared memory, what the compiler could not hold in registers, whether tensor cores multiply.
Triton must not interpret here: TRITON_INTERPRET=0.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from models import cells, cuda_loop, cuda_step, kernels
from models.weights import ForecasterConfig

PROGRAMS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
FLOAT32, INT32 = {"inputs", "biases", "head_bias", "output"}, {"slots", "count"}  # pointers to; the others to float16
NUMBERS = {"time", "batch"}


class Compiled(msgspec.Struct, frozen=True):
    """What a kernel takes on one kind of GPU."""

    kernel: str
    capability: int
    hidden: int
    shared_bytes: int
    spilled_bytes: int
    """of a thread, in local memory"""
    has_tensor_cores: bool


def compiled(kernel: triton.JITFunction, constants: dict[str, object], options: dict[str, int], cap: int) -> Compiled:
    """Raises what Triton raises where it does not compile."""
    names = kernel.arg_names
    types = {name: "constexpr" if name in constants else _type(name) for name in names}
    source = ASTSource(
        kernel,
        types,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n, type_ in types.items() if type_.startswith("*")},
    )
    made = triton.compile(source, target=GPUTarget("cuda", cap, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        tell = [str(PROGRAMS / "cuobjdump"), "--dump-resource-usage", file.name]
        usage = subprocess.run(tell, capture_output=True, text=True, check=True).stdout
    spilled = int(usage.rpartition("STACK:")[2].split()[0])
    has_tensor_cores = any(word in made.asm["ptx"] for word in ("wgmma", "mma.sync"))
    return Compiled(
        kernel.__name__, cap, int(str(constants["HIDDEN"])), made.metadata.shared, spilled, has_tensor_cores
    )


def _type(name: str) -> str:
    if name in NUMBERS:
        return "i32"
    return "*fp32" if name in FLOAT32 else "*i32" if name in INT32 else "*fp16"


def the_step(config: ForecasterConfig, cap: int) -> Compiled:
    constants: dict[str, object] = {
        "LAYERS": config.num_layers, "INPUT": config.input_size, "PADDED": cuda_step.padded(config),
        "HIDDEN": config.hidden_size, "RESIDUAL": config.residual, "OUTPUTS": 9, "ROWS": cuda_step.ROWS,
    }  # fmt: skip
    return compiled(kernels.step, constants, {}, cap)


def the_loop(cell: str, hidden: int, cap: int) -> Iterator[Compiled]:
    """Forward and backward."""
    if cell == "gru":
        launch = cuda_loop.Launch.of(hidden)
        for kernel in (kernels.gru_forward, kernels.gru_backward):
            yield compiled(kernel, {"HIDDEN": hidden, "ROWS": launch.rows, "SUM": tl.float32}, launch.options, cap)
        return
    switches = cells.LSTMS[cell]
    launch = cuda_loop.Launch.of(hidden, recurrent=switches.full_gate_recurrence)
    absent = [] if switches.peepholes else ["weight_ch"]
    absent += [] if switches.full_gate_recurrence else ["weight_gh", "gates_0", "dgates_0", "dgates_last"]
    for kernel in (kernels.lstm_forward, kernels.lstm_backward):
        constants: dict[str, object] = {**cuda_loop.constants(switches, hidden), "ROWS": launch.rows, "SUM": tl.float32}
        constants |= {name: None for name in absent if name in kernel.arg_names}
        yield compiled(kernel, constants, launch.options, cap)


def everything() -> Iterator[Compiled]:
    for cap in (80, 90):
        for config in (ForecasterConfig(18, 64), ForecasterConfig(18, 64, 2)):
            yield the_step(config, cap)
    loops = [(cell, 64, 90) for cell in cells.CELLS]
    loops += [("lstm", 128, 90), ("fgr", 128, 90), ("gru", 16, 90), ("lstm", 64, 80), ("gru", 128, 80)]
    for loop in loops:
        yield from the_loop(*loop)


if __name__ == "__main__":
    for each in everything():
        sys.stdout.write(msgspec.json.encode(each).decode() + "\n")
