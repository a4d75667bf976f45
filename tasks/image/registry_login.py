"""A registry's credentials, from a Prefect Secret block by name. Nobody passes them on as a parameter."""

from dpo_core.contract.errors import ConfigError
from tasks.image.push import Login, parse_login


def load_login(block_name: str | None) -> Login | None:
    """The credentials, or None where no block is named: then what ``docker login`` stored counts. Raises ``ConfigError``."""
    if block_name is None:
        return None
    from prefect.blocks.system import Secret  # takes seconds, and most images are pushed nowhere

    try:
        return parse_login(Secret.load(block_name).get(), block_name)
    except ConfigError:
        raise
    except ValueError:
        raise ConfigError(f"image.registry_block names `{block_name}`, but there is no such Prefect Secret block. Create it "
                          "in the UI (Blocks, Secret), or leave it empty and use `docker login`.") from None
