"""The contract between orchestrator and trainer: a job in, a result out, both frozen and torch-free.

A job is written as ``job.json``; ``accelerate launch -m dpo_core <step> --job job.json`` leaves ``result.json`` or
``error.json`` beside it. A step succeeded when it exited with 0 **and** ``result.json`` carries the job's fingerprint.

A fingerprint is made of content: file hashes, row contents, numerics, the step's ``VERSION``. Fields marked
``NotContent`` (paths, names, batch shapes) stay out, so moving the store or changing a batch's shape computes nothing
again. (Another batch shape may change the last bits of a float; a fingerprint stands for the run's definition.)
"""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Generic, Self, TypeVar

from pydantic import PrivateAttr
from pydantic_core import to_json

from dpo_core.contract.section import Section, content_of
from dpo_core.contract.store import fingerprint, write_bytes

JOB_FILE, LOG_FILE = "job.json", "log.txt"
LARGEST_JOB_BYTES = 16 << 20


class Result(Section):
    """What a step leaves as ``result.json``."""

    job_fingerprint: str
    seconds: float = 0.0

    def file_sets(self) -> Iterator[tuple[Path, dict[str, str]]]:
        """Return each folder that is hashed, with the sha256 of its files: all that a later step may be given to read."""
        return iter(())


R = TypeVar("R", bound=Result)


class Job(Section, Generic[R]):
    """One call of ``dpo_core`` that leaves an ``R``.

    What it does is its fields; where, is told when it is run (``at``). The folder then holds ``job.json``, the step's files,
    and ``result.json`` or ``error.json``.
    """

    VERSION: ClassVar[int] = 1  # raised when the step's code changes what it writes
    step: ClassVar[str]  # its name: of the program dpo_core.steps.<step>, of its folder in a store
    is_parallel: ClassVar[bool] = False  # the others are one process whatever compute.num_processes says
    is_one_on_card: ClassVar[bool] = False  # one process that computes with the model all the same
    _out_dir: Path | None = PrivateAttr(None)

    @classmethod
    def uses_cards(cls) -> bool:
        """Return whether it computes with the model, as all do that several processes run."""
        return cls.is_parallel or cls.is_one_on_card

    @classmethod
    def result_class(cls) -> type[R]:
        """Return what stands in the brackets: ``ReferenceResult`` for a ``Job[ReferenceResult]``."""
        return next(
            args[0]
            for base in cls.__mro__
            if issubclass(base, Job) and (args := base.__pydantic_generic_metadata__["args"])
        )

    def writes(self) -> tuple[Path, ...]:
        """Return folders beside ``out_dir`` that the step writes to: a cache that it shares with other jobs."""
        return ()

    def named_by_people(self) -> tuple[Path, ...]:
        """Return the inputs that a recipe names as they are, whose links are followed. All others are our own snapshots,
        which hold no links, or what an earlier step left."""
        return ()

    @property
    def needs_network(self) -> bool:
        """Whether the step talks to another machine's server."""
        return False

    @property
    def compiles(self) -> bool:
        """Whether the step may compile what it computes with: it calls a C compiler and loads what that has made."""
        return False

    @property
    def secrets(self) -> tuple[str, ...]:
        """Variables with a secret that the step is given, if they are set; no other one reaches it."""
        return ()

    @property
    def content(self) -> dict:
        """What can change the step's output."""
        return content_of(self)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the step, its version and the job's content."""
        return fingerprint({"version": self.VERSION, "step": self.step, **self.content})

    def at(self, out_dir: Path) -> Self:
        """Return the same job, to be run in ``out_dir``."""
        placed = self.model_copy()
        placed._out_dir = out_dir
        return placed

    @property
    def out_dir(self) -> Path:
        """The folder that it runs in."""
        assert self._out_dir is not None, f"nobody has said where {self.step} runs"
        return self._out_dir

    def write(self) -> Path:
        """Write ``job.json`` into ``out_dir`` and return its path."""
        content = {"step": self.step, "out_dir": self.out_dir, **dict(self)}
        write_bytes(self.out_dir / JOB_FILE, to_json(content, indent=2, inf_nan_mode="strings") + b"\n")
        return self.out_dir / JOB_FILE
