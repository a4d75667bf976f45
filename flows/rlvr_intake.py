"""The flow on the receiving side: a hand-off in, a verified start of an RLVR run out, or a refusal that says why."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from prefect import flow

from dpo_core.contract.errors import HandoffRefused
from tasks.build_image import build_image
from tasks.handoff.intake_config import IntakeConfig
from tasks.image.config import ImageConfig
from tasks.image.image_ref import PYTHON
from tasks.intake import AcceptedHandoff, verify_handoff
from tasks.launch.compute_config import ComputeConfig
from tasks.launch.launcher import StepImage, launcher_for
from tasks.launch.launchers import LAUNCHERS, LauncherSections
from tasks.launch.workplace import Workplace
from tasks.show.run_log import make_logs_visible


def local_path(handoff: str) -> Path:
    """Return a path or ``file://`` address as a path. Raises ``HandoffRefused`` for another kind of address."""
    try:
        address = urlsplit(handoff)
        if address.scheme == "file" and address.netloc in ("", "localhost"):
            return Path(unquote(address.path))
        if not (address.scheme and "://" in handoff):
            return Path(handoff).expanduser()
    except (ValueError, RuntimeError):  # "http://[x"; "~nobody/x"
        pass
    raise HandoffRefused(
        f"{handoff[:200]}: a hand-off is read from a path or file:// address; copy it here first."
    )


@flow(name="rlvr-intake")
def rlvr_intake(
    handoff: str,
    store_root: Path = Path(".pairline"),
    compute: ComputeConfig = ComputeConfig(),
    token_block: str | None = None,
    image: ImageConfig = ImageConfig(),
    intake: IntakeConfig = IntakeConfig(),
    launchers: LauncherSections = LauncherSections(),
) -> AcceptedHandoff:
    """Verify ``handoff`` (path or file:// address of a handoff.json). Raises ``HandoffRefused``.

    ``token_block``: name of the Prefect Secret block with a Hub token, for a private repository; empty: HF_TOKEN.
    ``image``: the trainer image, where steps run in one. ``launchers``: their own settings. ``intake``: what a hand-off may
    do here.
    """
    make_logs_visible()
    in_image = None
    if LAUNCHERS[compute.launcher]().runs_in_image:
        in_image = StepImage(build_image(image, store_root)[0].reference, PYTHON)
    place = Workplace(store_root, launcher_for(compute, launchers, in_image))
    return verify_handoff(local_path(handoff), place, token_block, intake)
