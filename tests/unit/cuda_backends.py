"""Runs on the Python of a CUDA release, without a GPU: which attention backend vLLM itself would take.

cuda_backends.py CAPABILITY <CASES >ANSWERS. A case has AttentionSelectorConfig's fields; an answer the valid backends,
best first, and why others are none. Only the capability is invented; the choice is vLLM's.
"""

from __future__ import annotations

import json
import logging
import os
import sys


def main() -> None:
    """Answer every case for one compute capability."""
    # What vLLM logs would stand among the answers.
    answers = os.dup(1)
    os.dup2(2, 1)
    import torch
    import vllm.platforms as platforms
    from vllm.platforms import cuda
    from vllm.platforms.interface import DeviceCapability

    capability = DeviceCapability(*(int(part) for part in sys.argv[1].split(".")))

    class Machine(cuda.NonNvmlCudaPlatform):
        """The CUDA platform of a machine with such GPUs."""

        @classmethod
        def get_device_capability(cls, *_of: int, **_which: int) -> DeviceCapability:
            return capability

        @classmethod
        def get_device_name(cls, *_of: int, **_which: int) -> str:
            return "invented"

        @classmethod
        def num_compute_units(cls, *_of: int, **_which: int) -> int:
            return 148

    platforms._current_platform = Machine()
    torch.cuda.get_device_capability = lambda *_arguments: (capability.major, capability.minor)
    made = torch.empty

    def empty(*shape: object, **options: object) -> object:
        # One backend takes a work space of GPU memory when it is imported.
        return made(
            *shape, **{**options, "device": "meta" if options.get("device") == "cuda" else options.get("device")}
        )

    torch.empty = empty
    logging.disable(logging.WARNING)
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.utils.flashinfer import has_flashinfer
    from vllm.v1.attention.selector import AttentionSelectorConfig

    found = []
    with set_current_vllm_config(VllmConfig()):
        for case in json.load(sys.stdin):
            heads = case.pop("num_heads")
            # GPUs before Ampere have no BF16, and vLLM takes FP16 there.
            dtype = torch.bfloat16 if capability.major >= 8 else torch.float16
            config = AttentionSelectorConfig(dtype=dtype, block_size=None, **case)
            valid, invalid = Machine.get_valid_backends(capability, config, heads)
            found.append(
                {
                    "backends": [item.backend.name for item in valid],
                    "refused": {backend.name: reasons for backend, (_place, reasons) in invalid.items()},
                    "flashinfer": has_flashinfer(),
                }
            )
    with os.fdopen(answers, "w", encoding="utf-8") as out:
        json.dump(found, out)


if __name__ == "__main__":
    main()
