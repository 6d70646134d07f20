"""The compared trainers. Each takes the steps that its pace asks for, until that raises Stop."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from .protocol import Pace
from .setup import Bench


class LeftOut(Exception):
    """Raised when a trainer is not timed, with the reason."""


def trainer(bench: Bench, pace: Pace, *, compiled: bool = False, liger: bool = False) -> None:
    """Train with `transformers.Trainer` unchanged, eager or compiled as a whole, with or without Liger's kernels.

    Its AdamW is `adamw_torch`, not fused; the average of the weights, which it does not have, is kept by a callback.
    """
    from transformers import PrinterCallback, Trainer, TrainingArguments

    class Observed(Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            loss = super().training_step(*args, **kwargs)
            pace.see(loss)
            return loss

    policy, section, on_gpu = bench.policy, bench.section, bench.device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=section.steps,
            per_device_train_batch_size=1,  # a whole batch is one item of the dataset
            bf16=on_gpu,
            tf32=True if on_gpu else None,
            use_cpu=not on_gpu,
            optim="adamw_torch",
            max_grad_norm=section.clip_norm or 0.0,
            lr_scheduler_type="cosine",
            logging_steps=section.log_every,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            accelerator_config={"dispatch_batches": False},
            torch_compile=compiled,
            use_liger_kernel=liger,
        )
        optimizer = bench.adamw()
        run = Observed(
            model=policy,
            args=arguments,
            train_dataset=_Stream(bench),
            data_collator=lambda items: items[0],
            optimizers=(optimizer, bench.schedule(optimizer)),
            callbacks=[_paced(bench, pace, liger=liger)],
        )
        run.remove_callback(PrinterCallback)
        policy.train()
        policy.train = partial(_stay, policy)  # type: ignore[method-assign]
        run.train()


def _stay(policy: nn.Module, mode: bool = True) -> nn.Module:
    """Replace `train()`, which Trainer calls in every step, and which the policy makes slow by walking over all modules."""
    return policy


class _Stream(IterableDataset[dict[str, Any]]):
    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._bench)


def _paced(bench: Bench, pace: Pace, *, liger: bool) -> Any:
    from transformers import TrainerCallback

    from policysmith.builder.training.optim.ema import WeightAverage

    class Paced(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            if liger and not (patched := _patched(bench.policy)):
                raise LeftOut(
                    f"Liger's kernels replace {patched} modules of this policy: it is `trainer` again"
                )
            ema = bench.section.ema
            self.average = None if ema is None else WeightAverage(bench.policy, ema)
            pace.begin()

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            bench.seed(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.average is not None:
                self.average.update(state.global_step)
            pace.stepped()

    return Paced()


def _patched(policy: nn.Module) -> int:
    """Return the number of modules whose forward pass is Liger's."""
    places = (getattr(module.forward, "__module__", None) for module in policy.modules())
    return sum(str(place).startswith("liger_kernel") for place in places)


def lerobot_like(bench: Bench, pace: Pace) -> None:
    """Train with a loop like LeRobot's: accelerate, eager, loss and gradient norm read in every step.

    The average of the weights is updated tensor by tensor, in the manner of diffusers' `EMAModel`.
    """
    from accelerate import Accelerator

    section, policy = bench.section, bench.policy
    accelerator = Accelerator(
        cpu=bench.device.type == "cpu",
        mixed_precision="bf16" if section.precision == "bf16" else "no",
        step_scheduler_with_optimizer=False,
    )
    plain = bench.adamw()
    model, optimizer, scheduler = accelerator.prepare(policy, plain, bench.schedule(plain))
    average = None if section.ema is None else TensorwiseAverage(policy, section.ema)
    model.train()
    pace.begin()
    for step, batch in enumerate(bench):
        bench.seed(step)
        with accelerator.autocast():
            loss = model(batch)["loss"]
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(policy.parameters(), section.clip_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if average is not None:
            average.update(step + 1)
        pace.see(loss)
        _ = loss.item(), norm.item()
        pace.stepped()


class TensorwiseAverage:
    """An exponential moving average that goes from one tensor to the next."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._weights = [weight for weight in model.parameters() if weight.requires_grad]
        self._average = [weight.detach().clone() for weight in self._weights]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights after `step` updates."""
        taken = 1.0 - min(self._decay, (1 + step) / (10 + step))
        for average, weight in zip(self._average, self._weights, strict=True):
            average.sub_(taken * (average - weight))


def ours(bench: Bench, pace: Pace) -> None:
    """Train with this project's trainer, with its defaults."""
    from policysmith.builder.training import loop
    from policysmith.builder.training.distributed.accelerator import make_accelerator
    from policysmith.builder.training.job import Job

    section = bench.section
    with tempfile.TemporaryDirectory() as folder:
        os.environ["POLICYSMITH_CACHE"] = folder  # without tables of an earlier run
        job = Job(
            policy=bench.policy,
            dataset=Indices(bench.size),
            collate=lambda indices: Resident(bench.held(indices)),
            section=section,
            directory=Path(folder),
            recipe=bench.builder.recipe.resolved(),
            fingerprint="synthetic",
        )
        loop.train(job, make_accelerator(section, bench.device.type), [_Reporter(pace, folder)])


class Indices(Dataset[int]):
    """Samples that are looked up when their batch is collated."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> int:
        return index


class Resident:
    """A batch that is already on the device, so that a loader need not pin it."""

    def __init__(self, batch: dict[str, Any]) -> None:
        self._batch = batch
        self.keys, self.items, self.values = batch.keys, batch.items, batch.values

    def __getitem__(self, key: str) -> Any:
        return self._batch[key]

    def pin_memory(self) -> Resident:
        return self


class _Reporter:
    def __init__(self, pace: Pace, folder: str) -> None:
        self._pace, self._folder = pace, folder

    def start(self, step: int, steps: int) -> None:
        self._pace.begin()

    def advance(self, step: int) -> None:
        self._pace.stepped()

    def log(self, step: int, values: dict[str, float]) -> None:
        self._pace.losses.append(values["loss"])

    def note(self, message: str) -> None:
        self._pace.notes.append(message.replace(self._folder, "<cache>"))

    def close(self) -> None:
        pass


VARIANTS: dict[str, Callable[[Bench, Pace], None]] = {
    "trainer": trainer,
    "trainer_compile": partial(trainer, compiled=True),
    "trainer_liger": partial(trainer, liger=True),
    "lerobot_like": lerobot_like,
    "ours": ours,
}
"""By name, in the order in which their blocks alternate; `trainer` is what the others are compared with."""
