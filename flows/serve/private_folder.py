"""A folder that other users of the machine cannot enter: what a server or its database holds is its user's alone."""

import os
from pathlib import Path

from dpo_core.contract.errors import ConfigError


def make_private(folder: Path) -> None:
    """Make ``folder`` 0700 and the files in it 0600, those that were there before, too.

    Raises ``ConfigError`` if it is another user's, who could read and replace whatever is put there.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (owner := folder.stat().st_uid) != os.geteuid():
        raise ConfigError(
            f"{folder} belongs to the user {owner} and you are {os.geteuid()}: what is kept there would be "
            "theirs. Choose a folder of your own with PAIRLINE_HOME, or change its owner: chown -R."
        )
    folder.chmod(0o700)
    for path in folder.iterdir():
        if not path.is_symlink():
            path.chmod(0o700 if path.is_dir() else 0o600)
