"""Runs a step in containers: starts them, or finds them running and attaches.

    no container of the name         start one
    one of this job, running         attach: a killed orchestrator left it; its log goes on where it was copied to
    one of this job, ended           copy the rest of its log, remove it, start a new one: it resumes from the job's folder
    one with other inputs, or one    stop it first, so that it writes a checkpoint
      whose other nodes ended
    one that is not of this job      refuse

The claim on the job's folder (``run_job``) sees to it that one orchestrator at a time does this.
"""

import contextlib
import logging
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self

from dpo_core.contract.errors import ConfigError, PairlineError, StoreError
from dpo_core.contract.job_registry import JOBS
from tasks.launch.compute import Machine, this_machine
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.context import Context
from tasks.launch.docker.config import OWN_NETWORK, DockerConfig
from tasks.launch.docker.container import (
    DEADLINE,
    JOB,
    LABEL,
    ContainerSpec,
    Setup,
    container_spec,
    container_user,
    line_prefix,
)
from tasks.launch.docker.engine import ContainerEngine
from tasks.launch.docker.engine_answers import NameTaken, PathUnseen, Seen
from tasks.launch.docker.left_containers import put_away
from tasks.launch.docker.reap import reap as reap_containers
from tasks.launch.docker.secret_files import places_for_secrets, secret_files
from tasks.launch.docker.watch import Limits, Watch, Watched
from tasks.launch.launcher import BeforeStart, CommandSpec, Ended, OnLine, StepImage
from tasks.launch.launchers import LauncherSections
from tasks.launch.log_position import forget_position, go_back_to_position, save_position, saved_times
from tasks.launch.patience import patiently
from tasks.launch.reaped import OnlyOf, Reaped, StateOf
from tasks.launch.store_access import check_readable, hand_over, let_read, with_link_targets

log = logging.getLogger(__name__)
ENGINE_PATIENCE_SECONDS = (
    300.0  # a restarted engine is back within seconds; an update of its machine takes minutes
)
NUM_TRIES, SECONDS_TO_START = 3, 3.0  # where another orchestrator takes the name first


@dataclass(frozen=True, slots=True)
class DockerLauncher:
    """The launcher for a machine with a container engine. ``image``: id or digest, never a tag."""

    runs_in_image: ClassVar[bool] = True
    spans_machines: ClassVar[bool] = True  # as containers of this one, for tests
    queues: ClassVar[bool] = False
    compute: ComputeConfig
    image: str
    python: str
    docker: DockerConfig = field(default_factory=DockerConfig)
    machine: Machine = field(default_factory=this_machine)
    engine_address: str = ""  # empty: DOCKER_HOST, or the local engine
    patience_seconds: float = ENGINE_PATIENCE_SECONDS

    @classmethod
    def of(cls, compute: ComputeConfig, sections: LauncherSections, image: StepImage | None) -> Self:
        """See ``Launcher.of``. Raises ``ConfigError`` where there is no engine, ``RemoteError`` if it may be restarting."""
        assert image is not None, "it runs in an image"
        ContainerEngine().check()
        return cls(compute, image.reference, image.python, sections.docker)

    @classmethod
    def target(cls, compute: ComputeConfig, sections: LauncherSections, step: str) -> Machine:
        """See ``Launcher.target``: this one, or a container's share of it."""
        return _share(this_machine(), compute, step)

    @classmethod
    def is_reached_from_here(cls, sections: LauncherSections, step: str) -> bool:
        """See ``Launcher.is_reached_from_here``: the network that is made here goes out through this machine."""
        return sections.docker.network == OWN_NETWORK

    def machine_for(self, step: str, context: Context) -> Machine:
        """See ``Launcher.machine_for``: this one, of which each of several containers of a step has its share."""
        return _share(self.machine, self.compute, step)

    def compute_for(self, step: str) -> ComputeConfig:
        """See ``Launcher.compute_for``: those of ``compute``."""
        return self.compute

    @classmethod
    def preview(cls, compute: ComputeConfig, sections: LauncherSections, command: CommandSpec) -> str:
        """See ``Launcher.preview``: the command."""
        return ""

    @classmethod
    def reap(cls, dry_run: bool, state_of: StateOf, only_of: OnlyOf) -> list[Reaped] | None:
        """See ``Launcher.reap``. Raises ``ConfigError`` where there is no engine."""
        engine = ContainerEngine()
        engine.check()
        return reap_containers(engine, dry_run, state_of, only_of)

    def run(
        self, commands: tuple[CommandSpec, ...], context: Context, on_line: OnLine, before_start: BeforeStart
    ) -> Ended:
        """See ``Launcher.run``. Raises ``ConfigError``, ``StoreError``, ``TimedOut``; ``EngineLost`` (retried) if the engine
        stays away: then the containers run on and the next start attaches to them."""
        engine = ContainerEngine(self.engine_address)
        commands = tuple(
            replace(command, inputs=with_link_targets(command.inputs, command.named_by_people))
            for command in commands
        )
        deadline, members = self._attach_or_start(engine, commands, context, before_start)
        try:
            grace = self.compute.stop_grace_seconds or commands[0].stop_grace_seconds
            limits = Limits(deadline, grace, self.patience_seconds, self.compute.folder_gib)
            return Watch(engine, commands[0], members, limits, context, on_line).until_the_end()
        finally:
            with contextlib.suppress(PairlineError):
                self._remove_network(engine, commands, context)

    def clear(self, folder: Path, context: Context) -> None:
        """See ``Launcher.clear``: a container that outlived its orchestrator."""
        known = saved_times(folder)
        if not known:
            return
        with contextlib.suppress(PairlineError):  # `pairline reap` will do it
            engine = ContainerEngine(self.engine_address)
            left = [
                seen
                for one in known
                if (seen := engine.find(one)) is not None and seen.labels.get(LABEL) == "1"
            ]
            put_away(engine, folder, left, context)
            forget_position(folder)

    def _attach_or_start(
        self,
        engine: ContainerEngine,
        commands: tuple[CommandSpec, ...],
        context: Context,
        before_start: BeforeStart,
    ) -> tuple[float, list[Watched]]:
        for _ in range(NUM_TRIES):
            found = patiently(
                lambda: self._running(engine, commands, context), Context(), self.patience_seconds
            )
            if found:
                return found
            before_start()
            try:
                return self._start(engine, commands, context)
            except (
                NameTaken
            ):  # by an orchestrator that does not see this store's locks: attach to what it starts
                time.sleep(SECONDS_TO_START)
        raise ConfigError(
            f"The containers of step {commands[0].step} are started and removed by someone else at the same "
            "time. Give this run another `store.root`."
        )

    def specs(
        self, commands: tuple[CommandSpec, ...], context: Context, deadline: float
    ) -> list[ContainerSpec]:
        """Return the containers of a step."""
        user = container_user(os.getuid(), os.getgid())
        setup = Setup(self.image, self.compute, self.docker, self.machine)
        return [
            container_spec(command, setup, user, context.run, deadline, os.environ) for command in commands
        ]

    def _running(
        self, engine: ContainerEngine, commands: tuple[CommandSpec, ...], context: Context
    ) -> tuple[float, list[Watched]] | None:
        """Deadline and containers of the step if all of them run; what is left of an earlier start is put away."""
        specs = self.specs(commands, context, deadline=0)
        found = [seen for spec in specs if (seen := engine.find(spec.name)) is not None]
        for seen in found:
            _check_ours(seen, specs[0])
        # The same inputs in another place: the probe of a fresh download must not be answered from an older one.
        same = all({str(mount.path) for mount in specs[0].mounts} <= seen.mounts for seen in found)
        if len(found) < len(specs) or not same or not all(seen.running for seen in found):
            put_away(engine, commands[0].folder, found, context)
            return None
        log.info("Attaching to %s, which runs already.", specs[0].name)
        times = go_back_to_position(commands[0].folder, [seen.id for seen in found])
        members = [
            Watched(seen.id, seen.name, line_prefix(seen.labels), times.get(seen.id, "")) for seen in found
        ]
        return float(found[0].labels[DEADLINE]), members

    def _start(
        self, engine: ContainerEngine, commands: tuple[CommandSpec, ...], context: Context
    ) -> tuple[float, list[Watched]]:
        deadline = time.time() + commands[0].timeout_seconds
        specs, members = self.specs(commands, context, deadline), list[Watched]()
        hand_over({mount.path for spec in specs for mount in spec.mounts if mount.writable}, specs[0].user)
        let_read(commands[0].inputs, specs[0].user)
        check_readable(commands[0].inputs, specs[0].user)
        try:
            for spec in specs:
                if spec.hostname:
                    engine.make_network(spec.network, spec.labels)
                elif spec.network != "none":
                    engine.find_network(spec.network)
                _create_and_start(engine, spec, members, context)
        except BaseException:
            with contextlib.suppress(PairlineError):
                for member in members:
                    engine.remove(member.id)
                self._remove_network(engine, commands, context)
            raise
        save_position(commands[0].folder, {member.id: "" for member in members})
        return deadline, members

    def _remove_network(
        self, engine: ContainerEngine, commands: tuple[CommandSpec, ...], context: Context
    ) -> None:
        if commands[0].node.num_nodes > 1:
            engine.remove_network(self.specs(commands, context, deadline=0)[0].network)


def _share(machine: Machine, compute: ComputeConfig, step: str) -> Machine:
    """What each container of a step has of the machine's cores and cards. Raises ``ConfigError`` for more containers than
    cards."""
    sharing = compute.machines if JOBS[step].is_parallel else 1
    if 0 < machine.num_gpus < sharing:
        raise ConfigError(
            f"compute.machines is {sharing}, which with compute.launcher docker are containers on this machine, and it "
            f"shows {machine.num_gpus} GPUs: each container needs one of its own.",
            f"Set compute.machines to {machine.num_gpus} or less.",
        )
    cores, cards = max(1, machine.num_cores // sharing), machine.num_gpus // sharing
    return replace(machine, num_cores=cores, num_gpus=cards)


def _create_and_start(
    engine: ContainerEngine, spec: ContainerSpec, members: list[Watched], context: Context
) -> None:
    """Add the container to ``members`` as soon as there is one."""
    *others, last = places_for_secrets(spec)
    for place in (*others, last):
        try:
            with secret_files(spec, place, context) as files:
                members.append(Watched(engine.create(spec, files), spec.name, line_prefix(spec.labels)))
                engine.start(members[-1].id)
                return
        except PathUnseen as unseen:
            if place == last:
                raise StoreError(
                    f"The engine at {engine.address} does not see {unseen}, which the step needs. Start the "
                    "engine on this machine, or give `store.root` a path that both see."
                ) from unseen


def _check_ours(seen: Seen, spec: ContainerSpec) -> None:
    ours = seen.labels.get(LABEL) == "1"
    if not ours or seen.labels.get(JOB) != spec.labels[JOB]:
        whose = f"belongs to job {seen.labels.get(JOB, '')[:16]}" if ours else "is not Pairline's"
        raise ConfigError(
            f"There is a container named {seen.name} that {whose}, expected none or one of job "
            f"{spec.labels[JOB][:16]}. Rename or remove it (docker rename, docker rm), then start again."
        )
