"""The training loop, on accelerate: one process or several, CPU or GPU, new or resumed.

All randomness of a step follows from the seed and the number of the step: the order of the data; with the
sample, its augmentation; with the batch and the rank, dropout and noise. So a resumed run takes the very
steps that the uninterrupted run would have taken.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from itertools import chain

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ...schemas.errors import Interrupted, TrainingError
from ...schemas.interrupts import Signals
from .. import runs
from ..capture import capturable
from . import checkpoint
from .batches import Batches, loaded_batches, stored_batches
from .checkpoint import Identity
from .distributed.accelerator import own_stream, peak, setting
from .distributed.agreement import starting_point
from .distributed.collectives import Peers
from .distributed.sharding import unsharded
from .distributed.watchdog import Watchdog
from .distributed.weighing import Weighing
from .failures import explained
from .frozen.cache import Samples, stored_rows
from .frozen.table import Rows
from .job import Job, Result, order_of
from .monitoring.flops import count_operations
from .monitoring.health import Health, broken_buffers, not_finite
from .monitoring.logs import Reporter, Reporters
from .monitoring.meter import Interval, Meter
from .monitoring.profile import NEEDED, Profile
from .monitoring.quiet import quiet_libraries
from .optim.build import build_optimizer
from .optim.ema import WeightAverage
from .optim.schedule import learning_rate
from .outcomes import Outcomes
from .randomness import mix
from .requests import Requests, stopped_message
from .speed.speedups import Speedups, place
from .speed.step_graph import StepGraph
from .update import Batch, Update
from .validation import Validation

LAG = {"cpu": 0, "cuda": 2}
"""Steps after which a log line is read, so that a GPU does not run out of work meanwhile."""


def train(
    job: Job, accelerator: Accelerator, reporters: Sequence[Reporter], *, resume: bool = False
) -> Result:
    """Run the job to its last step, with `resume` from its newest checkpoint.

    Raise TrainingError for a loss that is not finite, CheckpointError for a checkpoint of another run, and
    Interrupted for a signal. Weights are saved first.
    """
    with ExitStack() as undo:  # nothing that is done to the policy or the process outlives the run
        undo.enter_context(explained(job.directory, job.section, accelerator.num_processes))
        undo.enter_context(quiet_libraries())
        signals = undo.enter_context(Signals())
        if accelerator.num_processes > 1 and job.section.sharding == "off":
            undo.enter_context(own_stream(accelerator.device))
        run = _Run(job, accelerator, Reporters(reporters), signals, undo, resume=resume)
        with signals.deferred(), run.pending_lines_logged():
            run.catch_up()
            while run.step < job.section.steps and not run.outcomes.stopped_early:
                run.requests.publish()
                with run.watchdog.watching(run.step):
                    run.take_step()
                run.after_step()
            run.outcomes.await_results(signals)
    return run.result()


class _Run:
    """The state of a run."""

    def __init__(
        self,
        job: Job,
        accelerator: Accelerator,
        reporter: Reporters,
        signals: Signals,
        undo: ExitStack,
        *,
        resume: bool,
    ) -> None:
        began = time.perf_counter()
        section, device, world = job.section, accelerator.device, accelerator.num_processes
        self.job, self.section, self.accelerator, self.reporter = job, section, accelerator, reporter
        self.policy, self.sharded = job.policy, section.sharding != "off"
        bf16 = accelerator.mixed_precision == "bf16"

        place(self.policy, section, accelerator, undo)
        self.average = WeightAverage(self.policy, section.ema) if section.ema is not None else None
        self.optimizer = build_optimizer(self.policy, section.optimizer, self.average, bf16=bf16)
        self.identity = Identity(job.recipe, job.fingerprint, world)
        self.saved = job.directory / runs.POLICY
        self.step = self._start(resume=resume)
        self.rate, self.loss = 0.0, float("nan")
        self.profile = self._profile() if job.profile else None

        self.peers = Peers(world, device)
        self.health = Health(self.optimizer, device, self.step)
        self.requests = Requests(signals, self.health, section, accelerator)
        self.watchdog = Watchdog(section.timeout_minutes, accelerator.process_index, world)
        undo.callback(self.watchdog.end)
        self.weighing = Weighing(self.policy, section.accumulate, world, reporter.note)
        self.validation = Validation(job, accelerator) if job.validation is not None else None
        self.outcomes = Outcomes(job, accelerator, reporter, self.step)
        undo.callback(self.outcomes.end)

        self.order = order_of(job, accelerator, self.step)
        rows = self._stored_rows()
        batches = self._batches(rows)
        undo.callback(
            batches.close
        )  # a loader's workers would outlive the run, and hold up the program's end
        self.policy.train()
        self.speedups = Speedups(
            self.policy, section, accelerator, undo, reporter.note, frozen_idle=rows is not None
        )
        first = next(batches)
        self.batches = chain([first], batches)
        if bf16 and not self.sharded:
            # with `accumulate`, several gradients add up better in float32
            self.optimizer.follow(self.speedups.copy_weights(first, trained=section.accumulate == 1))
        model = self.policy if self.sharded else accelerator.prepare(self.policy)
        model.train()
        reporter.note(setting(accelerator, model))
        if self.optimizer.memory_note:
            reporter.note(self.optimizer.memory_note)
        update = Update(
            self.policy, model, self.optimizer, accelerator, self.health, self.peers, section, self._phase
        )
        flops = self._count_operations(update, first)
        self.update = StepGraph(update, self.peers, reporter.note) if self._may_capture() else update
        for chained in self.policy.fused_transforms(first):
            reporter.note(f"images go through one kernel: {', '.join(f'`{name}`' for name in chained)}")
        self.broken_from_start = set(broken_buffers(self.policy))

        self.lag = LAG[device.type]
        self.intervals: deque[Interval] = deque()
        self.meter = Meter(
            section.batch_size * section.accumulate * world,
            device,
            world,
            flops=flops,
            peak=peak(device) if bf16 else None,
        )
        self.startup_seconds = time.perf_counter() - began

    def take_step(self) -> None:
        """Update the weights once, from `accumulate` batches."""
        section = self.section
        self.rate = learning_rate(self.step, section.steps, section.optimizer.lr, section.schedule)
        self.optimizer.set_rate(self.rate)
        with self._phase("data wait"):
            batches = self.meter.time_wait(lambda: [next(self.batches) for _ in range(section.accumulate)])
        if self.sharded:  # FSDP2 leaves the buffers of processes apart
            self.peers.share(self.policy.buffers())
        seeds = [self._seed(micro) for micro in range(section.accumulate)]
        outputs, norm = self.update(self.weighing(batches), seeds)
        for output in outputs:
            self.meter.add(output)
        self.meter.count_step(norm)

    def after_step(self) -> None:
        """Check, log and save, as far as they are due. Raise Interrupted if a signal asked for it."""
        done = self.step + 1
        last = done == self.section.steps
        planned = self.outcomes.is_planned(done)
        stop, due = self.requests.after(done)
        saves = planned or due or stop != 0
        if self.lag == 0:
            self._stop_if_not_finite()
        self.step = done
        if self.profile is not None and (table := self.profile.stepped()):
            self.reporter.note(table)
        if saves or done % self.section.log_every == 0:
            self.intervals.append(self.meter.interval(done, self.rate, self.health.bad))
        self.reporter.advance(done)
        while self.intervals and (saves or self.intervals[0].step + self.lag <= done):
            newest = saves and len(self.intervals) == 1
            self._log(self.intervals.popleft(), saves=newest, validates=newest and planned)
        if saves:
            self.reporter.note(f"checkpoint {self.saved}")
            self.requests.saved()
            self.meter.restart()
        self.outcomes.take_results()
        if planned:
            self.outcomes.after_planned_save(done)
        if stop and not last and not self.outcomes.stopped_early:
            if self.accelerator.num_processes > 1:
                self.accelerator.end_training()
            message = stopped_message(stop, done, self.section.steps, self.saved)
            raise Interrupted(stop, message if self.accelerator.is_main_process else "")

    def catch_up(self) -> None:
        """Validate and evaluate what a run missed that was killed after saving."""
        self.outcomes.catch_up(self.step, self._validated if self.validation is not None else None)

    def _validated(self) -> dict[str, float]:
        assert self.validation is not None
        with self.speedups.paused():
            return self.validation.losses(self.policy, self.average)

    @contextmanager
    def pending_lines_logged(self) -> Iterator[None]:
        """Log the lines that wait for the device if an error ends the context."""
        try:
            yield
        except Exception:
            with suppress(Exception):  # the device may be what failed
                for interval in self.intervals:
                    values, finite = self.meter.read(interval)
                    if finite:
                        self.reporter.log(interval.step, values)
            raise

    def result(self) -> Result:
        """Return the trained policy, after all changes for speed are undone."""
        if self.average is not None:
            self.average.apply()
        policy = unsharded(self.policy).from_pretrained(self.saved) if self.sharded else self.policy
        policy.eval()
        if self.accelerator.num_processes > 1:
            self.accelerator.end_training()
        return Result(
            policy,
            self.saved,
            self.step,
            self.meter.taken,
            self.loss,
            self.meter.overall,
            self.startup_seconds,
            self.meter.first_step_seconds,
        )

    def _start(self, *, resume: bool) -> int:
        """Restore the newest checkpoint if asked to, start the reporters, and return the step."""
        step, changes = 0, list[str]()
        found = starting_point(self.job.directory, self.accelerator) if resume else None
        if found is not None:
            step, changes = checkpoint.restore(
                found, self.policy, self.optimizer, self.average, self.identity, verify=self.job.verify
            )
            self.saved = found
        elif resume:
            changes = [f"no checkpoint in {self.job.directory} to resume from: beginning at step 0"]
        self.reporter.start(step, self.section.steps)
        for line in (*self.job.notes, *changes):
            self.reporter.note(line)
        return step

    def _profile(self) -> Profile:
        """Return the profile of the next steps. Raise TrainingError if too few are left."""
        left = self.section.steps - self.step
        if left < NEEDED:
            raise TrainingError(
                f"a profile looks at {NEEDED} steps, and {left} are left; "
                f"set `training.steps` to {self.step + NEEDED} or more"
            )
        return Profile(
            self.job.directory / runs.PROFILE, self.accelerator.device, self.accelerator.is_main_process
        )

    def _stored_rows(self) -> Rows | None:
        """Return all samples with the features of frozen backbones, if these are computed once."""
        job, section = self.job, self.section
        if section.cache == "off":
            return None
        if self.sharded:
            if self.policy.frozen_backbones:
                self.reporter.note(
                    "frozen backbones run in every step: their weights are spread over processes"
                )
            return None
        samples = Samples(
            job.dataset,
            len(job.dataset),  # type: ignore[arg-type]
            job.collate,
            section.batch_size,
            section.workers,
            job.fingerprint,
        )
        world = self.accelerator.num_processes
        left = (section.steps - self.step) * section.accumulate * section.batch_size * world
        return stored_rows(self.policy, samples, left, self.accelerator, self.reporter.note)

    def _batches(self, rows: Rows | None) -> Batches:
        """Return the batches of all steps that are left, on the device."""
        section, device = self.section, self.accelerator.device
        if rows is not None:
            return stored_batches(rows.batch, self.order, device, accumulate=section.accumulate)
        return loaded_batches(
            self.job.dataset,
            self.order,
            self.job.collate,
            accumulate=section.accumulate,
            keyed=self.job.keyed,
            workers=section.workers,
            device=device,
        )

    def _may_capture(self) -> bool:
        """Return whether steps may be replayed as CUDA graphs."""
        section = self.section
        whole = section.accumulate == 1 and not self.sharded
        return section.cuda_graph != "off" and whole and capturable(self.accelerator.device)

    def _count_operations(self, update: Update, batch: Batch) -> int:
        """Return the operations of a step of this process, counted in an eager pass that trains nothing."""
        torch.manual_seed(self._seed(0))
        with self.speedups.plain_layers():
            total = count_operations(
                self.policy, lambda: update.forward(batch)["loss"], self.accelerator.device
            )
        self.optimizer.zero_grad()
        each = total / self.section.batch_size / 1e9
        self.reporter.note(
            f"{each:,.3g} GFLOP a sample, forward and backward, in matrix products and attention"
        )
        return total * self.section.accumulate

    def _seed(self, micro: int) -> int:
        """Return the seed of a batch of this step and process."""
        return mix(self.section.seed, self.step, micro, self.accelerator.process_index)

    def _phase(self, name: str) -> AbstractContextManager[None]:
        return nullcontext() if self.profile is None else self.profile.phase(name)

    def _log(self, interval: Interval, *, saves: bool, validates: bool) -> None:
        """Log the measurements up to a step, after saving and validating if these are due."""
        values, finite = self.meter.read(interval)
        if not finite:
            self._stop_if_not_finite()
        self.loss = values["loss"]
        if saves:
            with self.watchdog.watching(self.step):
                self._save(interval.step)
        if validates and self.validation is not None:
            values |= self._validated()
        self.outcomes.report(interval.step, values)

    def _stop_if_not_finite(self) -> None:
        """Raise TrainingError if a loss or gradient was not finite, after saving the weights before it."""
        step = self.health.first_bad_step()
        if step is None:
            return
        broken = sorted({*gather_object(broken_buffers(self.policy))} - self.broken_from_start)
        if broken:
            kept = f"statistics were lost with it ({', '.join(broken[:3])}), so the last checkpoint is {self.saved}"
        else:
            if not runs.checkpoint_path(self.job.directory, step).exists():
                self._save(step)
            kept = f"the weights before it are in {self.saved}"
        raise not_finite(step, self.order.batch(step * self.section.accumulate), kept)

    def _save(self, step: int) -> None:
        """Save a checkpoint and remove old ones."""
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
        if writes and (problem := runs.prune(self.job.directory, self.section.keep)):
            self.reporter.note(problem)
        self.accelerator.wait_for_everyone()
