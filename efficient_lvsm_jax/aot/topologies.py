"""Devices that are not there: TPU slices and GPU machines to compile for.

XLA compiles for a device from a description of it. For TPUs libtpu has descriptions; for NVIDIA
GPUs they stand here, from NVIDIA's tuning guides and data sheets. Nothing is run and, without a
device, nothing is tuned: which of several kernels is fastest is not known.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence

import jax

from efficient_lvsm_jax.cost.chips import Topology
from efficient_lvsm_jax.errors import InputError

# This host has no TPU and no metadata server; libtpu looks for both and complains at length.
_NOT_A_TPU_HOST = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # any that exists; the topology is what counts
}
# No driver either, which jax's plugin for CUDA would check.
_NOT_A_GPU_HOST = {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}

# What XLA asks of a GPU (GpuTargetConfigProto, text form) that differs: multiprocessors, 32-bit
# units of each, its shared memory, most of it for a block, L2 and HBM in bytes, HBM bytes/s, GHz.
_GPUS = {
    "a100": (108, 64, 167936, 166912, 41943040, 84987740160, 2039000000000, 1.41),
    "h100": (132, 128, 233472, 232448, 52428800, 84942979072, 3352320000000, 1.98),
    "h200": (132, 128, 233472, 232448, 62914560, 151397597184, 4800000000000, 1.98),
    "b200": (148, 128, 233472, 232448, 132120576, 192265846784, 8000000000000, 1.965),
}
_CAPABILITIES = {
    "a100": "major: 8",
    "h100": "major: 9 feature_extension: ACCELERATED_FEATURES",
    "h200": "major: 9 feature_extension: ACCELERATED_FEATURES",
    "b200": "major: 10 feature_extension: ACCELERATED_FEATURES",
}
_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  core_count: {cores} fpus_per_core: {units}
  shared_memory_per_block: 49152 shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {shared_for_a_block}
  l2_cache_size: {l2} device_memory_size: {memory} memory_bandwidth: {rate} clock_rate_ghz: {clock}
  cuda_compute_capability {{ {capability} }} name: "{name}"
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.12.0"
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 12 }} device_description_str: "{name}"
"""


def topology_devices(topology: Topology) -> Sequence[jax.Device]:
    """The devices of a topology that need not exist.

    Raises:
      InputError: the compiler for them is not installed, or knows no such topology.
    """
    if topology.chip.platform == "tpu":
        need, extra, unusual = "libtpu", "tpu-aot", _NOT_A_TPU_HOST
        options = {"platform": "tpu", "topology_name": topology.name}
    else:
        need, extra, unusual = "jax_cuda13_plugin", "gpu-aot", _NOT_A_GPU_HOST
        # slices x machines x GPUs of each
        shape = "x".join(map(str, (1, *topology.shape)))
        options = {"platform": "cuda", "topology": shape, "target_config": _target(topology)}
    if importlib.util.find_spec(need) is None:
        raise InputError(
            f"compiling for {topology.name} needs {need}: pip install "
            f"'efficient-lvsm-jax[{extra}]'; --estimate answers without it"
        )
    from jax.experimental import topologies

    os.environ.update(unusual)
    try:
        return topologies.get_topology_desc(**options).devices
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise InputError(f"topology {topology.name!r}: {str(error).splitlines()[0]}") from error


def _target(topology: Topology) -> str:
    names = ("cores", "units", "shared", "shared_for_a_block", "l2", "memory", "rate", "clock")
    numbers = dict(zip(names, _GPUS[topology.kind], strict=True))
    capability = _CAPABILITIES[topology.kind]
    return _TARGET.format(**numbers, capability=capability, name=topology.chip.device_kind)
