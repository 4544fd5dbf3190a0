"""Which parameters of a model are bfloat16 and which stay float32."""

from __future__ import annotations

import torch

DTYPES = (torch.float32, torch.bfloat16)

# openpi's to_bfloat16_for_selected_params: what stays float32 in a bfloat16 model, in our names.
FLOAT32_IN_BFLOAT16 = (
    "vision.patch_embedding.",
    "vision.position_embedding.",
    "action_in_proj.",
    "action_out_proj.",
    "time_mlp_in.",
    "time_mlp_out.",
)


def parameter_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """Dtype of the parameter `name` in a model of `dtype`.

    A bfloat16 model follows openpi's inference policy: patch and position embedding, all norms
    of both Gemma stacks (with the dense layers of adaRMS) and the four heads stay float32.

    Raises:
        ValueError: dtype is neither float32 nor bfloat16. float16 is left out on purpose:
            Gemma's residual stream exceeds its range.

    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype}; accepted: torch.float32, torch.bfloat16")
    gemma_norm = name.startswith(("vlm.", "expert.")) and ("layernorm" in name or ".norm." in name)
    keep = gemma_norm or name.startswith(FLOAT32_IN_BFLOAT16)
    return torch.float32 if keep else dtype
