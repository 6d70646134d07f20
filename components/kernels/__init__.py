"""Fused operators, each beside the plain torch that it stands for.

    modulated_norm    gated residual, LayerNorm or RMSNorm, and the shift and scale of AdaLN
    image_batch       crop, antialiased resize, colour jitter and normalisation of bytes
    adamw             clipping, AdamW, weight average and bfloat16 copy of many tensors
    group_norm_mish   group norm, Mish and FiLM of a 1-D U-Net
    gelu              bias, GELU and dropout between two linear layers
    attention         attention of up to 256 queries, with its gradients in one pass
    philox            random bits by keys, which transforms draw their numbers from

Every operator is a `torch.library` operator: it composes with `torch.compile(fullgraph=True)`, runs its Triton program
on CUDA devices, and its torch reference everywhere else, also where triton is missing. Sums are taken in float32 and
in a fixed order, so the same inputs give the same bits. Parts call them where `dispatch.fused` says so, and torch
elsewhere; `gelu` and `attention` are also put into layers that are compiled, by `builder/training/speed/fx/passes.py`. Each is
here because it is faster than `torch.compile` of its reference, by `benchmarks/kernels.py` and `benchmarks/attention.py`;
what is not does not stay. `philox` stands for some hundred launches where nothing is compiled.
"""
