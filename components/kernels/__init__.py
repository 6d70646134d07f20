"""Fused operators, each beside an equivalent in plain torch.

    modulated_norm    gated residual, LayerNorm or RMSNorm, and the shift and scale of AdaLN
    image_batch       crop, antialiased resize, color jitter and normalization of bytes
    adamw             clipping, AdamW, weight average and bfloat16 copy of many tensors
    group_norm_mish   group norm, Mish and FiLM of a 1-D U-Net
    gelu              bias, GELU and dropout between two linear layers
    attention         attention of up to 256 queries, with its gradients in one pass
    cached_attention  attention of few queries to cached keys and values and their own, in inference
    few_rows          products of few rows with wide weights, with GeGLU or a norm behind them, in inference
    philox            random bits by keys, for the random numbers of transforms

Each is a `torch.library` operator: it composes with `torch.compile(fullgraph=True)`, runs its Triton program
on CUDA devices, and its torch reference elsewhere or without triton. Sums are taken in float32 and in a fixed
order, so equal inputs give equal bits. Parts call an operator if `dispatch.uses_kernel` allows it, and torch
otherwise; `builder/training/speed/fx/passes.py` also inserts `gelu` and `attention` into compiled layers. An
operator stays only while it is faster than `torch.compile` of its reference in `benchmarks/kernels.py` or
`benchmarks/attention.py`; `philox` replaces some hundred launches in code that is not compiled.
"""
