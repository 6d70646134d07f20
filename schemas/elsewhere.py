"""Names of other trainers for what a recipe calls otherwise: LeRobot, openpi, transformers, Lightning, Hydra."""

from __future__ import annotations

from collections.abc import Mapping

_NAMES: Mapping[str, tuple[str, ...]] = {
    "data.horizon": ("chunk_size", "action_horizon", "chunk_length", "pred_horizon"),
    "data.observation_steps": ("n_obs_steps", "num_obs_steps", "obs_horizon", "history"),
    "data.path": ("repo_id", "dataset_path", "dataset_repo_id", "data_dir", "dataset_root"),
    "evaluation.env": ("env_name", "task_suite"),
    "evaluation.episodes": ("n_episodes", "num_episodes", "n_rollouts"),
    "evaluation.every": ("eval_freq", "eval_steps", "eval_interval"),
    "output": ("output_dir", "log_dir", "run_dir"),
    "policy.backbones": ("vision_backbone", "vision_encoder", "image_encoder", "obs_encoder", "encoder"),
    "policy.ensemble": ("temporal_ensemble_coeff", "temporal_agg", "temporal_ensemble"),
    "policy.execute": ("n_action_steps", "action_steps", "replan_steps", "n_exec"),
    "policy.head": ("action_head", "decoder"),
    "policy.init": ("pretrained_path", "pretrained_checkpoint", "base_model_path", "weight_loader"),
    "training.accumulate": ("gradient_accumulation_steps", "accumulate_grad_batches", "grad_accum"),
    "training.batch_size": ("per_device_train_batch_size", "train_batch_size"),
    "training.clip_norm": (
        "grad_clip", "gradient_clip", "grad_clip_norm", "max_grad_norm", "gradient_clip_val", "clip_grad",
    ),
    "training.ema": ("use_ema", "ema_decay", "ema_rate", "ema_power"),
    "training.log_every": ("log_freq", "logging_steps", "log_interval", "log_every_n_steps"),
    "training.optimizer.lr": ("learning_rate", "base_lr", "max_lr", "peak_lr", "optimizer_lr"),
    "training.optimizer.weight_decay": ("wd", "optimizer_weight_decay"),
    "training.precision": ("mixed_precision", "amp", "use_amp", "fp16", "bf16", "dtype", "torch_dtype"),
    "training.save_every": ("save_freq", "save_steps", "save_interval", "checkpoint_every"),
    "training.schedule": ("lr_scheduler", "scheduler", "lr_schedule"),
    "training.schedule.warmup": ("warmup_steps", "num_warmup_steps", "lr_warmup_steps", "warmup_ratio"),
    "training.steps": ("max_steps", "num_train_steps", "n_steps", "train_steps", "iterations"),
    "training.track": ("wandb", "wandb_project", "use_wandb", "logger", "report_to"),
    "training.workers": ("num_workers", "dataloader_num_workers"),
    "transforms": ("augmentation", "augmentations", "image_transforms", "normalization_mapping", "preprocessor"),
}  # fmt: skip
_SIZES = "sizes follow from the data; leave it out"
_STEPS = "a run is counted in steps, `training.steps`; `check` says how many epochs they are"
_ANSWERS: Mapping[str, str] = {
    **dict.fromkeys(("epochs", "num_epochs", "max_epochs", "num_train_epochs"), _STEPS),
    **dict.fromkeys(("action_dim", "state_dim", "max_action_dim", "max_state_dim", "output_dim"), _SIZES),
    **dict.fromkeys(("input_features", "output_features", "shape_meta"), _SIZES),
    **dict.fromkeys(("image_size", "img_size", "image_resolution"), "add `{type: resize, size: 224}` to `transforms`"),
    **dict.fromkeys(("_target_", "class_path", "target"), "a part is chosen by its `type`; see `policysmith list`"),
    **dict.fromkeys(("device", "accelerator", "gpus"), "the device is an option of the command: `policysmith train --device cuda`"),
    "resume": "an option of the command: `policysmith train --resume`",
}  # fmt: skip
ELSEWHERE: Mapping[str, str] = {name: path for path, names in _NAMES.items() for name in names}
"""Paths of a recipe by names of other trainers."""


def answer(key: str) -> str:
    """Return what a key of another trainer is here, as a label; empty for other keys."""
    name = key.lower()
    return _ANSWERS.get(name) or (f"here it is `{ELSEWHERE[name]}`" if name in ELSEWHERE else "")


__all__ = ["ELSEWHERE", "answer"]
