"""Slurm's own programs, asked in text: sbatch, squeue, scancel, scontrol, sinfo. Text is the same in all versions, JSON not.

says no                     ``ConfigError`` with Slurm's sentence
does not answer             ``SlurmAway``: nothing is known, not even whether what was asked has been done
does not know who asks      ``NotAuthenticated``, which is a ``SlurmAway`` that lasts, unless munged starts again just now
"""

import contextlib
import json
import os
import pwd
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from dpo_core.contract.errors import ConfigError
from tasks.launch.patience import NoAnswer
from tasks.launch.slurm.names import index_of, share_key

LONGEST_ANSWER_SECONDS = 60.0  # the programs give up themselves after 9 to 18 s
LONGEST_OF_ACCOUNTING_SECONDS = 10.0  # it is asked where other answers are waited for
BETWEEN = "\x1f"
SEEN_FORMAT = BETWEEN.join(("%i", "%T", "%r", "%N", "%P", "%S", "%j", "%k", "%V"))
ACTIVE = frozenset(
    (
        *("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING"),
        *("REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "STAGE_OUT", "SPECIAL_EXIT", "RESV_DEL_HOLD"),
        "EXPEDITING",
    )
)
AWAY = re.compile(
    r"socket timed out|unable to contact slurm controller|connection refused|connection timed out"
    r"|transport endpoint|communication connection failure|temporarily unable"
    r"|resource temporarily unavailable"
    r"|insane message length|header lengths are longer|unexpected message received|unable to establish"
    r"|slurm backup controller in standby",
    re.IGNORECASE,
)
# What this machine says that has no credential to send; of a credential that it does not take (another key, another clock,
# another AuthType) slurmctld tells nothing, and closes the connection: 22.05 with munge of another key, and with none.
UNKNOWN_HERE = re.compile(
    r"protocol authentication error|munge (en|de)code failed|invalid authentication credential"
    r"|zero bytes were transmitted",
    re.IGNORECASE,
)
# What a submission takes along and its job gets: no secret, nothing of an allocation that the orchestrator runs in.
TAKEN_ALONG = (
    *("HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "KRB5CCNAME"),
    *("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT"),
)
# Variables of a person's shell that change what is asked and how it is answered.
OF_THE_SHELL = ("SBATCH_", "SQUEUE_", "SCANCEL_", "SINFO_", "SCONTROL_", "SACCT_")
# What is said before "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)".
FULL = re.compile(r"\b((Assoc|QOS)(Grp|Max)|Max)SubmitJobs?(PerUser|PerAccount)?(Limit)?\b")
HINTS = {
    "Invalid job array specification": "Lower slurm.reference_array: MaxArraySize (`scontrol show config`) is more than any "
    "index of an array."
}
LOUD = re.compile(r"^(sbatch|squeue|scancel|scontrol|sinfo|sacct): ((error|fatal): )?")


class NoSlurm(ConfigError):
    """This machine has no programs of Slurm's, so that nothing can be asked."""


class SlurmAway(NoAnswer):
    """Slurm does not answer. Jobs run on meanwhile."""

    seconds_between_tries: ClassVar[float] = 5.0
    meanwhile: ClassVar[str] = "Jobs run on meanwhile."


class NotAuthenticated(SlurmAway):
    """Slurm does not know who asks. A munged that starts again is back within seconds, a key that is changed on all machines
    of a site within minutes; more is no accident that goes by."""

    longest_seconds: ClassVar[float] = 300.0


class QueueFull(ConfigError):
    """No further job is taken, of this user or (``is_shared``) of the account: others have to end first."""

    is_shared = False


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """One job as squeue tells it. ``comment``: what was given to it when it was submitted, {} if it is not ours."""

    id: str
    state: str
    reason: str
    nodes: str
    partition: str
    start: str  # when it started, or is expected to; "N/A" where nobody knows
    name: str
    comment: dict
    submitted: str = ""

    @property
    def is_active(self) -> bool:
        """Whether it waits, runs, or may do so again."""
        return self.state in ACTIVE

    @property
    def num_shares(self) -> int:
        """Of how many shares it computes one; 0 for a job of no array of ours."""
        count = self.comment.get("shares", 0)
        return count if isinstance(count, int) and index_of(self.id) is not None else 0

    @property
    def key(self) -> str:
        """What its starts are called in the record of its step."""
        key = str(self.comment.get("key", ""))
        return share_key(key, index_of(self.id) or 0, self.num_shares) if self.num_shares else key


def parse_queue(text: str) -> list[QueuedJob]:
    """Return the jobs of squeue's lines, in ``SEEN_FORMAT``. A line of another form is no job of ours."""
    found = []
    for line in text.splitlines():
        fields = line.split(BETWEEN)
        if len(fields) == len(SEEN_FORMAT.split(BETWEEN)):
            job_id, state, reason, nodes, partition, start, name, comment, submitted = fields
            about = (job_id, state, reason, nodes, partition, start, name)
            found.append(QueuedJob(*about, _comment(comment), submitted))
    return found


def _comment(text: str) -> dict:
    with contextlib.suppress(ValueError):
        read = json.loads(text)
        if isinstance(read, dict):
            return read
    return {}


def parse_details(text: str) -> dict[str, str]:
    """Return scontrol's ``Name=value`` pairs of one job."""
    return dict(re.findall(r"(?:^|\s)([A-Z][\w:/]*)=(\S*)", text))


def refusal(said: str) -> str:
    """Return what Slurm refuses with, without the programs' names before it."""
    lines = [LOUD.sub("", line.strip()) for line in said.splitlines() if line.strip()]
    return (
        " ".join(line if line.endswith((".", ":")) else f"{line}." for line in lines) or "It gave no reason."
    )


def submit(arguments: Iterable[str], script: str) -> str:
    """Return the new job's id. Raises ``ConfigError`` for what the cluster refuses, ``QueueFull`` where it would take it
    later, ``SlurmAway`` also where it says no id: the job may have been taken."""
    said = _run(("sbatch", "--parsable", *arguments), script).strip()
    last = said.rpartition("\n")[2].strip()  # a site's plugins may print before it
    if not (found := re.fullmatch(r"(\d+)(;.*)?", last)):  # and its cluster, where there are several
        raise SlurmAway(f"sbatch told no id of a job, but: {last[:300] or 'nothing'}.")
    return found[1]


def try_submit(arguments: Iterable[str], script: str) -> str:
    """Return what `sbatch --test-only` says of a job that is not submitted. Raises ``ConfigError``, ``SlurmAway``."""
    done = _done(("sbatch", "--test-only", *arguments), script)
    _judge("sbatch", done)
    return refusal(done.stderr or done.stdout)


def queue(names: Iterable[str] = ()) -> list[QueuedJob]:
    """Return this user's jobs of these names (all, without names), those that ended lately, too; each of an array's."""
    only = (f"--name={','.join(sorted(names))}",) if names else ()
    said = _run(("squeue", "--noheader", "--states=all", "--me", "--array", *only, f"--format={SEEN_FORMAT}"))
    # A job that it was about to name would be taken for one that is not there.
    if said and not said.endswith("\n"):
        raise SlurmAway("squeue stopped in the middle of a line.")
    return parse_queue(said)


def details(job_id: str) -> list[dict[str, str]]:
    """Return what scontrol tells of a job, or of each of an array's; [] if it is not known any more."""
    try:
        said = _run(("scontrol", "--oneliner", "show", "job", job_id))
    except ConfigError:
        return []
    return [parse_details(line) for line in said.splitlines()]


def accounted(job_id: str, name: str) -> str:
    """Return the state that a job of this name ended in by Slurm's accounting; empty where there is none, or it does not
    say. ``CANCELLED by 1000`` is CANCELLED."""
    return _accounted(job_id, name).partition(" ")[0]


def who_cancelled(job_id: str, name: str) -> str:
    """Return the user who cancelled a job of this name, by login name if this machine knows it; empty where Slurm's
    accounting does not say. Nothing else of Slurm's tells."""
    word, _, number = _accounted(job_id, name).partition(" by ")
    if word != "CANCELLED" or not (number.isascii() and number.isdigit()):
        return ""
    with contextlib.suppress(KeyError, OverflowError):
        return pwd.getpwuid(int(number)).pw_name
    return f"of number {number}"


def _accounted(job_id: str, name: str) -> str:
    asked = (f"--jobs={job_id}", "--format=JobName,State")
    with contextlib.suppress(ConfigError, SlurmAway):
        flags = ("--allocations", "--noheader", "--parsable2")
        said = _run(("sacct", *flags, *asked), seconds=LONGEST_OF_ACCOUNTING_SECONDS)
        for line in reversed(said.splitlines()):
            of_whom, _, state = line.partition("|")
            if of_whom == name and state.partition(" ")[0] not in ACTIVE:
                return state
    return ""


def signal_steps(job_id: str, signal: str) -> None:
    """Send a signal to every process of a running job but its batch shell."""
    with contextlib.suppress(ConfigError):  # it has just ended
        _run(("scancel", f"--signal={signal}", job_id))


def cancel(job_id: str, if_it_waits: bool = False) -> None:
    """End a job, or all of an array: SIGTERM, and after the site's KillWait SIGKILL."""
    only = ("--state=PENDING",) if if_it_waits else ()
    with contextlib.suppress(ConfigError):
        _run(("scancel", *only, job_id))


def comment(job_id: str, text: str) -> None:
    """Set the comment of a job of this user's."""
    _run(("scontrol", "update", f"jobid={job_id}", f"comment={text}"))


def node_lines(partition: str) -> str:
    """Return sinfo's lines of the partition's nodes, of all without one, as ``nodes`` reads them. Raises ``ConfigError``,
    ``SlurmAway``."""
    only = (f"--partition={partition}",) if partition else ()
    return _run(("sinfo", "--noheader", "--noconvert", "--Node", "--format=%P|%c|%m|%L|%l", *only))


def _run(argv: tuple[str, ...], script: str = "", seconds: float = LONGEST_ANSWER_SECONDS) -> str:
    done = _done(argv, script, seconds)
    _judge(argv[0], done)
    return done.stdout


def _judge(program: str, done: "subprocess.CompletedProcess[str]") -> None:
    if done.returncode == 0:
        return
    if UNKNOWN_HERE.search(done.stderr):
        raise NotAuthenticated(
            f"Slurm closes the connection, or cannot be told who asks ({program}: {refusal(done.stderr)[:300]})",
            "If it lasts: is munged running on this machine, with the cluster's key and time (`munge -n | unmunge`)? Does "
            "SLURM_CONF name this cluster's own file?",
        )
    if done.returncode < 0 or AWAY.search(done.stderr):
        raise SlurmAway(f"Slurm does not answer ({program}: {refusal(done.stderr)[:300]})")
    sentence = f"Slurm refuses ({program}): {refusal(done.stderr)[:1000]}"
    if program == "sbatch" and (limit := FULL.search(done.stderr)):
        full = QueueFull(sentence)
        full.is_shared = "Grp" in limit[0] or "Account" in limit[0]
        raise full
    raise ConfigError(sentence, *(hint for said, hint in HINTS.items() if said in done.stderr))


def _done(
    argv: tuple[str, ...], script: str, seconds: float = LONGEST_ANSWER_SECONDS
) -> "subprocess.CompletedProcess[str]":
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(OF_THE_SHELL) and (argv[0] != "sbatch" or name in TAKEN_ALONG)
    }
    try:
        return subprocess.run(
            argv,
            input=script,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
            env=environment | {"SLURM_TIME_FORMAT": "standard"},
            start_new_session=True,  # Ctrl-C at the terminal must not cut a submission short
        )
    except FileNotFoundError:
        raise NoSlurm(
            f"There is no {argv[0]} on this machine, so no Slurm cluster can be asked.",
            "Start on a login node, or set compute.launcher to process or docker.",
        ) from None
    except OSError as error:  # no memory, too many processes: that says nothing of a job
        raise SlurmAway(f"Slurm cannot be asked from here ({argv[0]}: {error.strerror}).") from error
    except subprocess.TimeoutExpired as late:
        raise SlurmAway(f"Slurm does not answer ({argv[0]}: {late.timeout:.0f} s).") from late
