"""`make demo-chain`: starts the SFT run and watches what its event sets in motion: DPO, hand-off, intake, GRPO."""

import argparse
import os
import sys
import time
from pathlib import Path

import yaml
from rich.console import Console

from dpo_core.contract.errors import ConfigError, PairlineError
from examples.chain.make_inputs import make_inputs
from flows.serve.settings import ServeSettings, settings_from_environment
from flows.serve.up import deploy, server_of
from tasks.text.terminal import say, show_table, tell

SECONDS_AT_MOST = 1800
POLL_SECONDS = 2.0
LAST_FLOW = "trl-grpo"


def prepare(settings: ServeSettings) -> Path:
    """The inputs, the recipe with their absolute paths, and the neighbours' deployments. -> the demo's folder"""
    if server_of(settings).pid() is None:
        raise ConfigError("No server runs here. Start it with `make up`.")
    folder = settings.home / "chain-demo"
    make_inputs(folder)
    values = yaml.safe_load((Path(__file__).parent / "recipe.yaml").read_text())
    values["data"]["sources"] = [{"source": str(folder / "preferences.jsonl"), "amount": "1.0"}]
    values["store"] = {"root": str(folder / "store")}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    environment = settings.environment() | {"CHAIN_DEMO": str(folder)}
    os.environ.update(environment)
    deploy(environment, Path(__file__).parent / "prefect.yaml")
    return folder


def run_chain(folder: Path, seed: int, console: Console) -> bool:
    """Start the first run and wait for the last. -> whether all completed"""
    from prefect.client.orchestration import get_client
    from prefect.deployments import run_deployment

    from tasks.events.chain import tagged_runs

    first = run_deployment(
        "trl-sft/chain-demo",
        timeout=0,
        as_subflow=False,
        parameters={"inputs": str(folder), "target": str(folder / f"sft-{seed}"), "seed": seed},
    )
    tell(console, f"trl-sft: {first.name} started with seed {seed}", is_cut=True)
    seen, deadline = {}, time.monotonic() + SECONDS_AT_MOST
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            first = client.read_flow_run(first.id)
            chain = next((tag for tag in first.tags if tag.startswith("chain:")), None)
            runs = tagged_runs(client, chain) if chain else [first]
            names = {run.id: client.read_flow(run.flow_id).name for run in runs}
            for run in runs:
                if run.state and seen.get(run.id) != run.state.name:
                    seen[run.id] = run.state.name
                    tell(console, f"{names[run.id]}: {run.name} {run.state.name}", is_cut=True)
            failed = any(run.state and run.state.is_final() and not run.state.is_completed() for run in runs)
            ended = any(names[run.id] == LAST_FLOW and run.state and run.state.is_final() for run in runs)
            if failed or ended:
                show(runs, names, console, chain)
                return ended and not failed
            time.sleep(POLL_SECONDS)
    raise PairlineError(f"The chain was not done after {SECONDS_AT_MOST} s. Look at its runs in the UI.")


def show(runs: list, names: dict, console: Console, chain: str | None) -> None:
    """The chain as a table, with the addresses of its runs."""
    from prefect.utilities.urls import url_for

    show_table(
        console,
        ("flow", "run", "state", "seconds"),
        [
            (names[run.id], run.name, run.state.name, f"{run.total_run_time.total_seconds():.1f}")
            for run in runs
        ],
        f"The chain {chain}",
    )
    for run in runs:
        tell(console, f"{names[run.id]:<10} {url_for(run)}")


def main() -> int:
    """Exit status 0 if the whole chain completed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seed",
        type=int,
        default=int(time.time()) % 100_000,
        help="of the SFT run; another is another chain",
    )
    arguments = parser.parse_args()
    try:
        return 0 if run_chain(prepare(settings_from_environment()), arguments.seed, Console()) else 1
    except PairlineError as error:
        say(f"Error: {error}", sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
