"""Linear layers for prediction: at their own precision, and with weights packed for oneDNN where that is faster.

torch's default product of float32 matrices on a CPU is MKL's, which on AMD's processors with AVX-512 reaches half of
what oneDNN does (98 against 189 GFLOP/s where it was measured). With AVX2 alone MKL is the faster one (88 against 74
GFLOP/s a core), so weights are packed only where the CPU has AVX-512, or where they are of a half precision, which
oneDNN computes anyway and would otherwise pack anew in each call.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PACK = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)
_PRODUCT = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_TYPICAL_ROWS = 784  # the layout of packed weights is chosen for this many rows; it is right for any number


def gains_by_packing(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether packed weights of this type are faster on this machine."""
    if device.type != "cpu" or _PACK is None or _PRODUCT is None or not torch.backends.mkldnn.is_available():
        return False
    if dtype is torch.bfloat16:
        return computes_bfloat16()
    return dtype is torch.float32 and torch.backends.cpu.get_cpu_capability() == "AVX512"


def gains_by_products(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether attention of this type is faster on this machine by `plain_product` than by torch's own kernel."""
    if _PRODUCT is None or "binary" not in _PRODUCT.overloads():
        return False
    return all(gains_by_packing(each, device) for each in (torch.float32, dtype))


def plain_product(left: Tensor, right: Tensor, plus: Tensor | None = None) -> Tensor:
    """left @ right.T + plus, by oneDNN. Only where it `gains_by_products`.

    Args:
        left: (l, d), contiguous: anything else is computed right, but very slowly.
        right: (r, d), contiguous, or the transpose of such a matrix.
        plus: (l, r), contiguous; added before the result is written.

    Returns:
        (l, r).
    """
    if plus is None:
        return _PRODUCT(left, right, None, "none", [], "")
    return _PRODUCT.binary(left, plus, right, None, "add")


def computes_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16 (AVX512-BF16 or AMX); others are slower at them."""
    found = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check is not None and check() for check in found)


class FastLinear(nn.Module):
    """A linear layer that casts its input to its weights' type and gives its output in that type.

    Attributes:
        gelu: whether an exact GELU follows; packed, it is one operation with the product.
    """

    def __init__(self, weight: Tensor, bias: Tensor, packed: bool, gelu: bool = False) -> None:
        """
        Args:
            weight: (out, in), at the precision to compute in. It is shared, not copied, unless packed.
            bias: (out,), of the same type.
            packed: keep the weights in oneDNN's layout. They are unpacked for `state_dict` and, slowly, for gradients.
            gelu: apply an exact GELU to the output.
        """
        super().__init__()
        self.gelu, self.dtype = gelu, weight.dtype
        self.packed = _PACK(weight, _TYPICAL_ROWS) if packed else None
        self.register_parameter("weight", None if packed else nn.Parameter(weight, requires_grad=False))
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens.to(self.dtype)
        if self.packed is None or torch.is_grad_enabled():
            output = F.linear(tokens, self.dense_weight(), self.bias)
            return F.gelu(output) if self.gelu else output
        # The last two arguments belong to the operation fused to the product: "none" is the exact form of GELU.
        fused = ("gelu", [], "none") if self.gelu else ("none", [], "")
        return _PRODUCT(tokens, self.packed, self.bias, *fused)

    def dense_weight(self) -> Tensor:
        """Returns the weights (out, in) in the usual layout."""
        return self.weight if self.packed is None else self.packed.to_dense()

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.packed is not None:
            destination[f"{prefix}weight"] = self.dense_weight()

    def __reduce__(self):
        # Packed weights can neither be copied nor pickled.
        return FastLinear, (self.dense_weight(), self.bias.detach(), self.packed is not None, self.gelu)
