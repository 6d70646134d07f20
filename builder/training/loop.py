"""The training loop, on accelerate: one process or many, CPU or GPU, from the first step or from a checkpoint.

Everything random in step s comes from the seed and s: order of the data and, with the sample, its augmentation; with the
batch and the rank, dropout and noise. So a resumed run takes the very steps that the uninterrupted one would have taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from ...schemas.errors import Interrupted, TrainingError
from ...schemas.interrupts import Signals
from .. import runs
from . import batches, checkpoint
from .checkpoint import Identity
from .distributed.accelerator import own_stream, peak, setting
from .distributed.agreement import starting_point
from .distributed.collectives import Peers
from .distributed.sharding import unsharded
from .distributed.watchdog import Watchdog
from .failures import checked, explained
from .frozen.cache import Samples, stored_rows
from .frozen.table import Rows
from .job import Job, Result, order_of
from .monitoring.flops import counted
from .monitoring.logs import Reporter
from .monitoring.meter import Health, Interval, Meter, not_finite
from .monitoring.profile import NEEDED, Profile
from .optim.adamw import adamw, clip, learning_rate, set_rate
from .optim.ema import WeightAverage
from .optim.fused_adamw import FusedAdamW
from .requests import Requests, farewell
from .seeds import mix
from .speed.cuda_graph import Update, capturable
from .speed.speedups import Speedups
from .speed.step_graph import StepGraph
from .validation import Validation
from .weighing import Weighing

LAG = 2
"""Steps after which a log line of a GPU is read, so that the GPU does not run out of work meanwhile."""


def train(
    job: Job, accelerator: Accelerator, reporters: Sequence[Reporter], *, resume: bool = False
) -> Result:
    """Run the job to its last step, from its newest checkpoint where `resume` asks for that.

    Raise TrainingError for a loss that is not finite, CheckpointError for a checkpoint of another run, and Interrupted for a signal. Weights are saved first.
    """
    with ExitStack() as undo:  # what is done to the policy for speed
        undo.enter_context(explained(job.directory, job.section, accelerator.num_processes))
        signals = undo.enter_context(Signals())
        if accelerator.num_processes > 1 and job.section.sharding == "off":
            undo.enter_context(own_stream(accelerator.device))
        found = starting_point(job.directory, accelerator) if resume else None
        run = _Run(job, accelerator, reporters, signals, undo)
        if found is not None:
            run.restore(found)
        run.take_steps(beginning=resume and found is None)
    return run.result()


class _Run:
    """The state of a run, and what happens to it step by step."""

    def __init__(
        self,
        job: Job,
        accelerator: Accelerator,
        reporters: Sequence[Reporter],
        signals: Signals,
        undo: ExitStack,
    ) -> None:
        self.job, self.accelerator, self.reporters, self.signals = job, accelerator, reporters, signals
        self.section, self.policy = job.section, job.policy
        self.policy.to(accelerator.device)
        self.sharded = self.section.sharding != "off"
        self.speedups = Speedups(self.policy, self.section, accelerator, undo, self._note)
        self.speedups.lay_out()
        self.average = WeightAverage(self.policy, self.section.ema) if self.section.ema is not None else None
        self.optimizer = adamw(self.policy, self.section.optimizer, self.average, bf16=self.speedups.bf16)
        self.identity = Identity(job.recipe, job.fingerprint, accelerator.num_processes)
        self.health = Health(self.optimizer, accelerator.device)
        world, batches = accelerator.num_processes, self.section.accumulate
        self.meter = Meter(self.section.batch_size * batches * world, accelerator.device, world)
        self.weighing = Weighing(self.policy, batches, world, self._note)
        self.peers = Peers(world, accelerator.device)
        self.watchdog = Watchdog(self.section.timeout_minutes, accelerator.process_index, world)
        undo.callback(self.watchdog.end)
        self.requests = Requests(signals, self.health, self.section, accelerator)
        self.step, self.rate, self.loss = 0, 0.0, float("nan")
        self.lag = 0 if accelerator.device.type == "cpu" else LAG
        self.intervals: deque[Interval] = deque()
        self.profile: Profile | None = None
        self.saved = job.directory / runs.POLICY
        self.changes: list[str] = []
        """Differences of a resumed run from the one before."""
        self.validation = Validation(job, accelerator) if job.validation is not None else None

    def restore(self, found: Path) -> None:
        """Take up where a checkpoint left off."""
        run = self.policy, self.optimizer, self.average, self.identity
        self.step, self.changes = checkpoint.restore(found, *run, verify=self.job.verify)
        self.saved = found

    def take_steps(self, *, beginning: bool) -> None:
        """Take all steps that are left. `beginning` says that there was nothing to resume, which is worth a note."""
        self.sampler = order_of(self.job, self.accelerator, self.step)
        for reporter in self.reporters:
            reporter.start(self.step, self.section.steps)
            for line in self.job.notes:
                reporter.note(line)
            if beginning:
                reporter.note(f"no checkpoint in {self.job.directory} to resume from: beginning at step 0")
            for change in self.changes:
                reporter.note(change)
        self._prepare()
        try:
            with self.signals.deferred():
                while self.step < self.section.steps:
                    self.requests.tell()
                    with self.watchdog.watching(self.step):
                        self._update()
                    self._after_step()
        except Exception:
            with suppress(Exception):  # the device may be what failed
                for interval in self.intervals:
                    values, finite = self.meter.read(interval)
                    if finite:
                        self._log(interval.step, values)
            raise

    def result(self) -> Result:
        """The policy that was learned, once nothing is done to it for speed any more."""
        if self.average is not None:
            self.average.apply()
        policy = unsharded(self.policy).from_pretrained(self.saved) if self.sharded else self.policy
        policy.eval()
        if self.accelerator.num_processes > 1:
            self.accelerator.end_training()
        return Result(policy, self.saved, self.step, self.meter.taken, self.loss, self.meter.overall)

    def _prepare(self) -> None:
        """Ready batches, model and optimiser for the first step."""
        job, device = self.job, self.accelerator.device
        if job.profile and self.section.steps - self.step < NEEDED:
            raise TrainingError(
                f"a profile looks at {NEEDED} steps, and {self.section.steps - self.step} are left; "
                f"set `training.steps` to {self.step + NEEDED} or more"
            )
        rows = self._stored_rows()
        coming = (
            batches.stored(rows, self.sampler, device, accumulate=self.section.accumulate)
            if rows is not None
            else batches.loaded(
                job.dataset,
                self.sampler,
                job.collate,
                accumulate=self.section.accumulate,
                keyed=job.keyed,
                workers=self.section.workers,
                device=device,
            )
        )
        self.policy.train()
        self.speedups.quicken(idle=rows is not None)
        first = next(coming)
        self.batches = chain([first], coming)
        self.speedups.copy_weights(self.optimizer, first)
        self.prepared = self.accelerator.prepare_optimizer(self.optimizer, device_placement=False)
        self.model = self.policy if self.sharded else self.accelerator.prepare(self.policy)
        self.model.train()
        self._note(setting(self.accelerator, self.model))
        if isinstance(self.optimizer, FusedAdamW) and (saved := self.optimizer.saving):
            self._note(saved)
        self._count_operations(first)
        self.graph = self._graph()
        for together in self.policy.fused_transforms(first):
            self._note(f"images go through one kernel: {', '.join(f'`{name}`' for name in together)}")
        self.never_finite = set(self._not_finite())
        self.health.begin(self.step)
        if job.profile:
            self.profile = Profile(job.directory / runs.PROFILE, device, self.accelerator.is_main_process)
        self.meter.begin()

    def _graph(self) -> StepGraph | None:
        """What replays steps on a GPU, where that may be faster."""
        whole = self.section.accumulate == 1 and not self.sharded
        if self.section.cuda_graph == "off" or not whole or not capturable(self.accelerator.device):
            return None
        assert isinstance(self.optimizer, FusedAdamW)
        count, peers = self.accelerator.num_processes, self.peers

        def exchange(gradients: Sequence[Tensor]) -> None:
            peers.add(gradients)
            self.health.agree()

        def together(batch: Mapping[str, Any]) -> dict[str, Tensor]:
            output = self._gradients(self.model, batch)
            self.health.agree()
            return output

        update = Update(
            loss=lambda batch: self._passed(self.policy, batch),
            gradients=lambda batch: self._gradients(self.policy, batch, share=1.0 / count),
            together=together,
            exchange=exchange,
            step=self._step,
            phase=self._phase,
        )
        return StepGraph(update, self.policy, self.optimizer, peers, self._note)

    def _stored_rows(self) -> Rows | None:
        """All samples with the features of frozen backbones, where these are computed once."""
        job, section, world = self.job, self.section, self.accelerator.num_processes
        if section.cache == "off":
            return None
        if self.sharded:
            if self.policy.frozen_backbones:
                self._note("frozen backbones run in every step: their weights are spread over processes")
            return None
        samples = Samples(
            job.dataset,
            len(job.dataset),  # type: ignore[arg-type]
            job.collate,
            section.batch_size,
            section.workers,
            job.fingerprint,
        )
        seen = (section.steps - self.step) * section.accumulate * section.batch_size * world
        return stored_rows(self.policy, samples, seen, self.accelerator, self._note)

    def _note(self, message: str) -> None:
        for reporter in self.reporters:
            reporter.note(message)

    def _update(self) -> None:
        """One update of the weights, from `accumulate` batches."""
        section, accelerator = self.section, self.accelerator
        self.rate = learning_rate(self.step, section.steps, section.optimizer.lr, section.schedule)
        set_rate(self.optimizer, self.rate)
        with self._phase("data wait"):
            coming = self.meter.waiting(lambda: [next(self.batches) for _ in range(section.accumulate)])
        if self.sharded:  # FSDP2 leaves statistics of each process apart
            self.peers.share(self.policy.buffers())
        for micro, batch in enumerate(self.weighing(coming)):
            seed = mix(section.seed, self.step, micro, accelerator.process_index)
            if self.graph is not None:
                output, norm = self.graph(batch, seed)
                self.meter.add(output)
                self.meter.stepped(norm)
                continue
            torch.manual_seed(seed)
            with accelerator.accumulate(self.model):
                self.meter.add(self._gradients(self.model, batch))
                if accelerator.sync_gradients:
                    self.health.agree()
                    self.meter.stepped(self._step())
                    self.prepared.zero_grad(set_to_none=True)

    def _gradients(self, model: nn.Module, batch: Mapping[str, Any], share: float = 1.0) -> dict[str, Tensor]:
        """Forward and backward pass over a batch, which counts for `share`; gives its losses."""
        with self._phase("forward"):
            output = self._passed(model, batch)
        with self._phase("backward"):
            self.accelerator.backward(output["loss"] * share if share != 1.0 else output["loss"])
        self.health.see(output["loss"])
        return {name: value.detach() for name, value in output.items()}

    def _passed(self, model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the output of a forward pass."""
        with self.accelerator.autocast() if self.sharded else nullcontext():
            return checked(type(self.policy).__name__, model(batch))

    def _step(self) -> Tensor:
        """The optimiser's step, which leaves the gradients; gives their norm."""
        with self._phase("optimizer"):
            norm = clip(self.optimizer, self.section.clip_norm)
            self.health.see(norm)
            self.prepared.step()
            self.health.updated()
        return norm

    def _phase(self, name: str) -> AbstractContextManager[None]:
        return nullcontext() if self.profile is None else self.profile.phase(name)

    def _count_operations(self, batch: Mapping[str, Any]) -> None:
        """Count the operations of a pass over a batch, from which nothing is learned.

        Its layers are neither compiled nor in float8: eagerly, float8 also computes gradients of inputs that need none.
        """
        torch.manual_seed(mix(self.section.seed, self.step, 0, self.accelerator.process_index))
        device = self.accelerator.device
        with self.speedups.as_written():
            total = counted(self.policy, lambda: self._passed(self.policy, batch)["loss"], device)
        self.optimizer.zero_grad(set_to_none=True)
        limit = peak(device) if self.accelerator.mixed_precision == "bf16" else None
        self.meter.works(total * self.section.accumulate, limit)
        each = total / self.section.batch_size / 1e9
        self._note(f"{each:,.3g} GFLOP a sample, forward and backward, in matrix products and attention")

    def _after_step(self) -> None:
        """Check, average, log and save, as far as they are due; raises Interrupted where a signal asked for it."""
        done = self.step + 1
        last = done == self.section.steps
        planned = last or (self.section.save_every is not None and done % self.section.save_every == 0)
        stop, due = self.requests.after(done)
        saves = planned or due or stop != 0
        logs = saves or done % self.section.log_every == 0
        if self.lag == 0:
            self._stop_if_not_finite()
        self.step = done
        if self.profile is not None and (seen := self.profile.stepped()):
            self._note(seen)
        if self.average is not None and not isinstance(self.optimizer, FusedAdamW):
            self.average.update(done)
        if logs:
            self.intervals.append(self.meter.interval(done, self.rate, self.health.bad))
        for reporter in self.reporters:
            reporter.advance(done)
        while self.intervals and (saves or self.intervals[0].step + self.lag <= done):
            due_here = saves and len(self.intervals) == 1
            self._tell(self.intervals.popleft(), saves=due_here, validates=due_here and planned)
        if saves:
            self._note(f"checkpoint {self.saved}")
            self.requests.saved()
            self.meter.rest()
        if stop and not last:
            if self.accelerator.num_processes > 1:
                self.accelerator.end_training()
            speaks = self.accelerator.is_main_process
            raise Interrupted(stop, farewell(stop, done, self.section.steps, self.saved) if speaks else "")

    def _tell(self, interval: Interval, *, saves: bool, validates: bool) -> None:
        """Log what happened up to a step, and before save and validate if that is due."""
        values, finite = self.meter.read(interval)
        if not finite:
            self._stop_if_not_finite()
        self.loss = values["loss"]
        if saves:
            with self.watchdog.watching(self.step):
                self._save(interval.step)
        if validates and self.validation is not None:
            with self.speedups.paused():
                values |= self.validation.losses(self.policy, self.average)
        self._log(interval.step, values)

    def _log(self, step: int, values: dict[str, float]) -> None:
        for reporter in self.reporters:
            reporter.log(step, values)

    def _stop_if_not_finite(self) -> None:
        step = self.health.first_bad_step()
        if step is None:
            return
        broken = sorted({*gather_object(self._not_finite())} - self.never_finite)
        if broken:
            kept = f"statistics were lost with it ({', '.join(broken[:3])}), so the last checkpoint is {self.saved}"
        else:
            if not checkpoint.checkpoint_path(self.job.directory, step).exists():
                self._save(step)
            kept = f"the weights before it are in {self.saved}"
        raise not_finite(step, self.sampler.batch(step * self.section.accumulate), kept)

    def _not_finite(self) -> list[str]:
        """Buffers that hold something which is not finite, as masks may from the start."""
        return [name for name, buffer in self.policy.named_buffers() if not buffer.isfinite().all()]

    def _save(self, step: int) -> None:
        self.accelerator.wait_for_everyone()
        writes = self.accelerator.is_main_process
        if writes or self.sharded:
            with self.speedups.own_weights():
                self.saved = checkpoint.save(
                    self.job.directory,
                    step,
                    self.policy,
                    self.optimizer,
                    self.average,
                    self.identity,
                    writes=writes,
                )
        if writes and (left := runs.prune(self.job.directory, self.section.keep)):
            self._note(left)
        self.accelerator.wait_for_everyone()
