"""The training loop, on accelerate: one process or many, CPU or GPU, from the first step or from a checkpoint.

Everything random in step s comes from the seed and s: order of the data and, with the sample, its augmentation; with the
batch and the rank, dropout and noise. So a resumed run takes the very steps that the uninterrupted one would have taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import Dataset

from ...schemas.errors import TrainingError
from ..data.rows import Rows
from ..data.sampler import MixtureSampler, ResumableSampler
from ..policy import RecipePolicy, runs
from . import batches, checkpoint
from .captured import Update, capturable
from .checkpoint import Identity
from .ema import WeightAverage
from .feature_cache import Samples, stored_rows
from .flops import ModelFlops
from .fused_adamw import FusedAdamW
from .job import Job, Result
from .logs import Reporter
from .optimization import adamw, clip, learning_rate, set_rate
from .peers import Peers
from .placement import own_stream, peak, setting
from .profile import NEEDED, Profile
from .seeds import mix
from .sharding import unsharded
from .speedups import Speedups
from .step_graph import StepGraph
from .validation import validate
from .watch import Health, Interval, Meter

LAG = 2
"""Steps after which a log line of a GPU is read, so that the GPU does not run out of work meanwhile."""


def train(
    job: Job, accelerator: Accelerator, reporters: Sequence[Reporter], *, resume: bool = False
) -> Result:
    """Run the job to its last step, from its newest checkpoint where `resume` asks for that.

    Raises TrainingError for a loss that is not finite, after saving the weights before it, and CheckpointError for a
    checkpoint of another run.
    """
    with ExitStack() as undo:  # what is done to the policy for speed
        if accelerator.num_processes > 1 and job.section.sharding == "off":
            undo.enter_context(own_stream(accelerator.device))
        run = _Run(job, accelerator, reporters, undo)
        found = checkpoint.latest(job.directory) if resume else None
        if found is not None:
            run.restore(found)
        run.take_steps(beginning=resume and found is None)
    return run.result()


class _Run:
    """The state of a run, and what happens to it step by step."""

    def __init__(
        self, job: Job, accelerator: Accelerator, reporters: Sequence[Reporter], undo: ExitStack
    ) -> None:
        self.job, self.accelerator, self.reporters = job, accelerator, reporters
        self.section, self.policy = job.section, job.policy
        self.policy.to(accelerator.device)
        self.sharded = self.section.sharding != "off"
        self.speedups = Speedups(self.policy, self.section, accelerator, undo, self._note)
        self.speedups.lay_out()
        self.average = WeightAverage(self.policy, self.section.ema) if self.section.ema is not None else None
        self.optimizer = adamw(self.policy, self.section.optimizer, self.average, bf16=self.speedups.bf16)
        self.identity = Identity(job.recipe, job.fingerprint, accelerator.num_processes)
        self.health = Health(self.optimizer, accelerator.device)
        samples = self.section.batch_size * self.section.accumulate * accelerator.num_processes
        self.meter = Meter(samples, accelerator.device)
        self.step, self.rate, self.loss = 0, 0.0, float("nan")
        self.lag = 0 if accelerator.device.type == "cpu" else LAG
        self.intervals: deque[Interval] = deque()
        self.profile: Profile | None = None
        self.saved = job.directory / "policy"
        self.changes: list[str] = []
        """What a resumed run does otherwise than before."""

    def restore(self, found: Path) -> None:
        """Take up where a checkpoint left off."""
        run = self.policy, self.optimizer, self.average, self.identity
        self.step, self.changes = checkpoint.restore(found, *run, verify=self.job.verify)
        self.saved = found

    def take_steps(self, *, beginning: bool) -> None:
        """Take all steps that are left. `beginning` says that there was nothing to resume, which is worth a note."""
        self.sampler = self._sampler()
        for reporter in self.reporters:
            reporter.start(self.step, self.section.steps)
            if beginning:
                reporter.note(f"no checkpoint in {self.job.directory} to resume from: beginning at step 0")
            for change in self.changes:
                reporter.note(change)
        self._prepare()
        try:
            while self.step < self.section.steps:
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
        return Result(policy, self.saved, self.step, self.loss, self.meter.overall)

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
        self.graph = self._graph()
        if isinstance(self.policy, RecipePolicy):
            for together in self.policy.fused(first):
                self._note(f"images go through one kernel: {', '.join(f'`{name}`' for name in together)}")
        self.never_finite = set(self._not_finite())
        self.health.begin(self.step)
        if job.profile:
            self.profile = Profile(job.directory / "profile", device, self.accelerator.is_main_process)
        self.meter.begin()

    def _graph(self) -> StepGraph | None:
        """What replays steps on a GPU, where that may be faster."""
        whole = self.section.accumulate == 1 and not self.sharded
        if self.section.cuda_graph == "off" or not whole or not capturable(self.accelerator.device):
            return None
        assert isinstance(self.optimizer, FusedAdamW)
        count = self.accelerator.num_processes
        peers = Peers(count, self.accelerator.device)

        def exchange(gradients: Sequence[Tensor]) -> None:
            peers.add(gradients)
            self.health.agree()

        def together(batch: Mapping[str, Any]) -> dict[str, Tensor]:
            output = self._gradients(self.model, batch)
            self.health.agree()
            return output

        update = Update(
            loss=lambda batch: self._checked(self.policy(batch)),
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
            if isinstance(self.policy, RecipePolicy) and self.policy.at_rest:
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
        return stored_rows(
            self.policy, samples, seen, self.accelerator, self._note, compiles=self.speedups.compiles
        )

    def _note(self, message: str) -> None:
        for reporter in self.reporters:
            reporter.note(message)

    def _sampler(self) -> ResumableSampler | MixtureSampler:
        place: dict[str, int] = {
            "batch_size": self.section.batch_size,
            "seed": self.section.seed,
            "rank": self.accelerator.process_index,
            "world_size": self.accelerator.num_processes,
            "start_step": self.step * self.section.accumulate,
        }
        if self.job.shares is not None:
            return MixtureSampler(self.job.shares, **place)
        return ResumableSampler(len(self.job.dataset), **place)  # type: ignore[arg-type]

    def _update(self) -> None:
        """One update of the weights, from `accumulate` batches."""
        section, accelerator = self.section, self.accelerator
        self.rate = learning_rate(self.step, section.steps, section.optimizer.lr, section.schedule)
        set_rate(self.optimizer, self.rate)
        for micro in range(section.accumulate):
            with self._phase("data wait"):
                batch = self.meter.waiting(lambda: next(self.batches))
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
        with self._counting():
            with self._phase("forward"), self.accelerator.autocast() if self.sharded else nullcontext():
                output = self._checked(model(batch))
            with self._phase("backward"):
                self.accelerator.backward(output["loss"] * share if share != 1.0 else output["loss"])
        self.health.see(output["loss"])
        return {name: value.detach() for name, value in output.items()}

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

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """Count the operations of the first pass, which is neither compiled nor in float8 for that: eagerly, float8 also
        computes gradients of inputs that need none.

        A run that goes on with such layers does not count: its first pass was theirs before.
        """
        changed = self.speedups.compiled or self.speedups.wide
        if self.meter.flops is not None or (changed and self.step > 0):
            yield
            return
        with self.speedups.as_written(), ModelFlops() as count:
            yield
        limit = peak(self.accelerator.device) if self.accelerator.mixed_precision == "bf16" else None
        total = count.get_total_flops()
        self.meter.works(total * self.section.accumulate, limit)
        each = total / self.section.batch_size / 1e9
        self._note(f"{each:,.3g} GFLOP a sample, forward and backward, in matrix products and attention")

    def _checked(self, output: Any) -> dict[str, Tensor]:
        """A forward pass's result. Raises TrainingError where a hand-written policy breaks the contract."""
        loss = output.get("loss") if isinstance(output, Mapping) else None
        if not isinstance(loss, Tensor) or loss.ndim != 0:
            given = sorted(map(str, output)) if isinstance(output, Mapping) else type(output).__name__
            raise TrainingError(
                f"{type(self.policy).__name__}.forward must give a dict with a scalar tensor `loss`; it gives {given}"
            )
        return {name: value for name, value in output.items() if isinstance(value, Tensor)}

    def _after_step(self) -> None:
        """Check, average, log and save, as far as they are due."""
        done = self.step + 1
        last = done == self.section.steps
        saves = last or (self.section.save_every is not None and done % self.section.save_every == 0)
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
            self._tell(self.intervals.popleft(), saves=saves and not self.intervals)
        if saves:
            self._note(f"checkpoint {self.saved}")
            self.meter.rest()

    def _tell(self, interval: Interval, *, saves: bool) -> None:
        """Log what happened up to a step, and save before if that is due."""
        values, finite = self.meter.read(interval)
        if not finite:
            self._stop_if_not_finite()
        self.loss = values["loss"]
        if saves:
            self._save(interval.step)
            if self.job.validation is not None:
                values |= self._validate(self.job.validation)
        self._log(interval.step, values)

    def _log(self, step: int, values: dict[str, float]) -> None:
        for reporter in self.reporters:
            reporter.log(step, values)

    def _validate(self, dataset: Dataset[Any]) -> dict[str, float]:
        with self.speedups.paused():
            return validate(
                self.policy, dataset, self.job.collate, self.section, self.accelerator, self.average
            )

    def _stop_if_not_finite(self) -> None:
        step = self.health.first_bad_step()
        if step is None:
            return
        broken = sorted({*gather_object(self._not_finite())} - self.never_finite)
        if broken:
            kept = f"statistics were lost with it ({', '.join(broken[:3])}), so the last checkpoint is {self.saved}"
        else:
            if not checkpoint.place(self.job.directory, step).exists():
                self._save(step)
            kept = f"the weights before it are in {self.saved}"
        samples = self.sampler.batch(step * self.section.accumulate)
        raise TrainingError(
            f"the loss or its gradient is not finite at step {step} (samples {samples[:8]}"
            f"{', ...' if len(samples) > 8 else ''}); {kept}. Look at these samples, or start a new run with a lower "
            "`training.optimizer.lr`, with `training.schedule.warmup`, or with `training.precision: fp32`"
        )

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
