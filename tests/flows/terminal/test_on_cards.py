"""Plans for cards: every shipped recipe fits where its head says; what does not fit is told what would."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dpo_core.contract.errors import ConfigError
from dpo_core.contract.model_shape import ModelShape
from flows.settings.overrides import read_recipe
from flows.terminal.cards import CARDS, card_of
from flows.terminal.cli import app
from flows.terminal.model_size import model_size
from flows.terminal.on_cards import Cluster, lines_of, on_cards
from flows.terminal.roofline import products_a_token, speed
from tasks.launch.compute import Machine, check_devices

RECIPES = Path(__file__).parents[3] / "recipes"
RUNS = re.compile(r"pairline run recipes/(\S+) --set (.*) \(docs/cluster.md\)")
OF_CARDS = sorted(path for path in RECIPES.glob("*.yaml") if "quickstart" not in path.name)
FITS = re.compile(r"pairline plan recipes/(\S+) --card (\S+)(?: --cards (\d+) --nodes (\d+))?")


def planned(recipe: str, card: str, cards: int, nodes: int, *changes: str) -> list[str]:
    cluster = Cluster.of(card, cards, nodes, None, cards * nodes)
    config = read_recipe(RECIPES / recipe, [*changes, f"compute.num_processes={cluster.total}"])
    return list(lines_of(config, model_size(config.checkpoint), cluster, None, None))


def test_every_recipe_fits_where_it_says_and_a_shape_is_shipped_for_it():
    assert len(OF_CARDS) == 8
    for path in OF_CARDS:
        found = FITS.search(path.read_text())
        assert found, path.name
        assert found[1] == path.name
        cards, nodes = int(found[3] or 1), int(found[4] or 1)
        assert read_recipe(path, []).compute.num_processes == cards * nodes, path.name
        verdict, takes = planned(path.name, found[2], cards, nodes)
        assert ": fits, " in verdict, path.name
        assert "s a step" in takes
        cluster = ["--cards", str(cards), "--nodes", str(nodes)]
        done = CliRunner().invoke(app, ["plan", str(path), "--card", found[2], *cluster])
        assert done.exit_code == 0, done.output


def test_recipes_for_several_nodes_say_how_they_are_started_on_them():
    """A machine shows at most 8 cards: without the settings the recipe is refused there, with them it starts."""
    told = [(path, match) for path in OF_CARDS if (match := RUNS.search(path.read_text()))]
    for path, match in told:
        assert match[1] == path.name
        spread = read_recipe(path, match[2].split(" --set "))
        nodes, machine = spread.compute.machines, Machine(num_cores=64, num_gpus=8)
        check_devices(spread.compute, machine)
        assert spread.compute.num_processes == 8 * nodes
        assert spread.slurm.num_gpus("train") == 8
        assert f"--nodes {nodes}\n" in path.read_text()
        with pytest.raises(ConfigError, match=f"compute.machines {nodes} with compute.launcher slurm"):
            check_devices(read_recipe(path, []).compute, machine)
    assert len(told) == 6


def test_the_command_says_whether_it_fits_and_starts_nothing(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    arguments = ["plan", str(RECIPES / "tulu3-8b.yaml"), "--card", "h100-80", "--cards", "8", "--price", "2"]
    done = CliRunner().invoke(app, [*arguments, "--nodes", "4"])
    assert done.exit_code == 0
    assert "On 4 x 8 h100-80: fits, " in done.output
    assert "at $2 a card and hour" in done.output
    assert "Effective batch: 128 pairs = 32 processes" in done.output


@pytest.mark.parametrize(
    ("change", "wrong", "unchecked"),
    [
        ("train.implementation=olmo_core", "its kind of model is mistral", "OLMo-core can train"),
        ("compute.tensor_degree=4", "its num_key_value_heads is 2", "compute.tensor_degree 4 can share out"),
    ],
)
def test_a_model_that_cannot_be_computed_as_asked_has_no_plan_for_cards(
    tmp_path, monkeypatch, change, wrong, unchecked
):
    """Whether it would fit is no question then; of one from the Hub that is not known yet, and the plan says so."""
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mistral", "num_key_value_heads": 2}))
    recipe = str(RECIPES / "olmo2-13b.yaml")
    arguments = ["plan", recipe, "--card", "h100-80", "--cards", "8", "--set", change]
    refused = CliRunner().invoke(app, [*arguments, "--set", f"checkpoint.source={tmp_path}"])
    assert isinstance(refused.exception, ConfigError)
    assert wrong in str(refused.exception)
    assert "fits" not in refused.output
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.exception
    assert (
        f"Not checked: whether {unchecked} allenai/OLMo-2-1124-13B-SFT, whose config.json is not here"
        in done.output
    )
    assert "Not checked" not in CliRunner().invoke(app, arguments[:-2]).output


def test_the_reference_pass_must_fit_as_well():
    """8B in bf16 and a little are 22 GiB of 23.9; in float32, or with 16 answers of 8,192 tokens, they are not."""
    recipe = "tulu3-8b-lora-24gb.yaml"
    assert ": fits, " in planned(recipe, "rtx4090-24", 1, 1)[0]
    long = planned(recipe, "rtx4090-24", 1, 1, "evaluation.max_new_tokens=8192")
    assert re.search(r"DOES NOT FIT, 44\.\d of 23\.9 GiB on a card \(44\.\d in the reference pass", long[0])
    config = read_recipe(RECIPES / recipe, [])
    size, cluster = model_size(config.checkpoint), Cluster.of("rtx4090-24", 1, 1, None, 1)
    of_weights = [
        on_cards(read_recipe(RECIPES / recipe, [f"train.precision={precision}"]), size, cluster).scoring
        for precision in ("bf16", "fp32")
    ]
    # 32 layers, 1,024 keys in float32 and values in bf16, of 4,096 tokens of prompts and 16 answers of 512
    assert of_weights[0]["keys and values of answers"] == 32 * 1024 * 6 * (4096 + 16 * 512)
    assert [sum(v for name, v in of.items() if name.startswith("weights")) for of in of_weights] == [
        2 * size.num_parameters,
        4 * size.num_parameters,
    ]


def test_a_node_s_cards_share_out_a_copy_in_steps_that_score():
    """70B on 8 nodes of 8: 141 GB by 8 in place of 64, as two of them fit a node; on nodes of 2 they do not."""
    config = read_recipe(RECIPES / "tulu3-70b.yaml", [])
    size = model_size(config.checkpoint)

    def weights(cards: int, nodes: int, *changes: str) -> int:
        changed = read_recipe(RECIPES / "tulu3-70b.yaml", list(changes))
        found = on_cards(changed, size, Cluster.of("h100-80", cards, nodes, None, 64))
        return sum(value for name, value in found.scoring.items() if name.startswith("weights"))

    assert weights(8, 8) == pytest.approx(2 * size.num_parameters / 8, rel=1e-6)
    assert weights(2, 32) == pytest.approx(2 * size.num_parameters / 64, rel=1e-6)
    assert weights(8, 8, "compute.shard_degree=32") == pytest.approx(2 * size.num_parameters / 32, rel=1e-6)


def test_four_bits_are_those_of_the_layers_and_the_ends_stay_as_they_are():
    """8B: 6.98e9 weights of layers at 0.516 bytes, 1.05e9 of embedding, head and norms at 4."""
    config = read_recipe(RECIPES / "tulu3-8b-lora-24gb.yaml", ["adapter.kind=qlora"])
    found = on_cards(config, model_size(config.checkpoint), Cluster.of("rtx4090-24", 1, 1, None, 1))
    by_hand = 6.98e9 * 0.516 + 1.05e9 * 4
    for memory, name in ((found.memory, "frozen weights"), (found.scoring, "weights")):
        (weights,) = (value for part, value in memory.items() if part.startswith(name))
        assert weights == pytest.approx(by_hand, rel=0.01)


def test_what_does_not_fit_is_told_what_would():
    verdict, advice = planned(
        "tulu3-8b.yaml",
        "h100-80",
        8,
        1,
        "train.gradient_checkpointing=false",
        "train.tokens_per_forward=40000",
    )
    assert "DOES NOT FIT" in verdict
    assert "train.gradient_checkpointing: True" in advice
    verdict, advice = planned("tulu3-70b.yaml", "h100-80", 8, 1)
    assert "DOES NOT FIT" in verdict
    assert re.search(r"compute.num_processes: (32|64) \((4|8) nodes\)", advice)
    assert "nothing that was tried" in planned("tulu3-70b.yaml", "l4-24", 1, 1)[1]
    alone = ("compute.sharding=none", "train.precision=bf16_pure")  # 12 bytes a weight on each card
    verdict, advice = planned("tulu3-8b.yaml", "h100-80", 8, 1, *alone)
    assert "DOES NOT FIT" in verdict
    assert "compute.sharding: fsdp2" in advice
    assert "train.precision: bf16" in advice


def test_a_model_whose_shape_nothing_tells_is_not_judged():
    (line,) = planned("tulu3-8b.yaml", "h100-80", 8, 1, "checkpoint.source=org/some-7b")
    assert "unknown" in line


def test_cards_and_nodes_follow_from_the_recipe_where_they_are_not_said():
    assert (
        Cluster.of("h100-80", None, None, None, 32).cards,
        Cluster.of("h100-80", None, None, None, 32).nodes,
    ) == (8, 4)
    assert Cluster.of("h100-80", None, 2, None, 32).cards == 16
    assert Cluster.of("h100-80", 4, None, None, 32).total == 4
    with pytest.raises(ConfigError, match="Known are a100-40"):
        card_of("h1000")


def test_products_and_speed_are_those_worked_out_by_hand():
    """One layer of 2 x (2 + 2 + 2 + 2) + 3 x 2 x 4 weights, a head of 10 x 2."""
    shape = ModelShape(1, 2, 4, 2, 2, 10)
    assert shape.linear_parameters == 2 * (2 * 2 + 2 * 2 + 3 * 4)
    # attention: 2 x 1 x 2 x (0.3 x 100) = 120 in weights' place
    assert products_a_token(shape, 100, (8, 8)) == pytest.approx(8 * (40 + 120) + 8 * 0.8 * 20)
    eight = model_size(read_recipe(RECIPES / "tulu3-8b.yaml", []).checkpoint).shape
    config = read_recipe(RECIPES / "tulu3-8b.yaml", [])
    fast = speed(config, eight, CARDS["h100-80"], 1, 16_384, 1030)
    # 16 pairs a card: 16,480 tokens in two forwards; 8 x 6.98e9 + 8 x 0.8 x 0.525e9 and a little attention a token
    assert fast.forwards == 2
    assert fast.step_seconds == pytest.approx(16_480 * 6.0e10 / (989e12 * 0.62 * 0.7), rel=0.06)
    kept = read_recipe(RECIPES / "tulu3-8b.yaml", ["train.activation_budget_gib=100"])  # 46 would do
    spared = 16_480 * 2 * 7.0e9 / (989e12 * 0.62 * 0.7)
    kept_seconds = speed(kept, eight, CARDS["h100-80"], 1, 16_384, 1030).step_seconds
    assert fast.step_seconds - kept_seconds == pytest.approx(spared, rel=0.06)


def test_replicas_exchange_less_between_nodes():
    """On 4 nodes of 8 whole weights cross the network; with a copy a node only an eighth of each card's gradient does."""
    shape = model_size(read_recipe(RECIPES / "tulu3-8b.yaml", []).checkpoint).shape
    slow = dataclasses.replace(CARDS["h100-80"], network=1e9)

    def step_seconds(*changes: str) -> float:
        config = read_recipe(RECIPES / "tulu3-8b.yaml", ["compute.num_processes=32", *changes])
        return speed(config, shape, slow, 4, 16_384, 1030).step_seconds

    weights = shape.num_parameters / 1e9
    assert step_seconds() == pytest.approx(8 * weights * 31 / 32, rel=0.02)
    assert step_seconds("compute.shard_degree=8") == pytest.approx(
        8 * weights * 7 / 8 / (slow.link / 1e9) + 8 * weights / 8 * 3 / 4, rel=0.02
    )


def test_between_nodes_cards_that_compute_together_exchange_less_and_sum_layers_within():
    """Tulu 3's 70B on 8 nodes of 8: 2 pairs a card are bound by the network, 16 pairs of 8 cards are not."""
    recipe = RECIPES / "tulu3-70b.yaml"
    shape = model_size(read_recipe(recipe, []).checkpoint).shape

    def seconds(degree: int) -> float:
        config = read_recipe(recipe, [f"compute.tensor_degree={degree}"])
        return speed(config, shape, CARDS["h100-80"], 8, 16_480, 1030).step_seconds

    update = 28 * shape.num_parameters / 64 / CARDS["h100-80"].memory
    assert seconds(1) - update == pytest.approx(8 * shape.num_parameters * 63 / 64 / 50e9, rel=1e-6)
    # 6 sums a layer of 8192 numbers of 2 bytes, 14/8 of it over NVLink, beside the products of an eighth of each matrix
    sums = 16_480 * 80 * 6 * 8192 * 2 * 14 / 8 / 450e9
    products = 16_480 * products_a_token(shape, 1030, (8, 8)) / 8 / (989e12 * 0.62 * 0.7)
    assert seconds(8) - update == pytest.approx(products + sums, rel=1e-6)
    assert seconds(1) > 3 * seconds(8)


def test_cards_without_float8_units_are_refused():
    on_it = [
        f"train.{setting}" for setting in ("implementation=olmo_core", "precision=bf16", "float8=rowwise")
    ]
    config = read_recipe(RECIPES / "tulu3-8b.yaml", [*on_it, "compute.sharding=fsdp2"])
    size, cards = model_size(config.checkpoint), config.compute.num_processes
    assert on_cards(config, size, Cluster.of("h100-80", cards, 1, None, cards))
    with pytest.raises(ConfigError, match=r"capability 8\.9 or later .*, and a100-80 has 8\.0"):
        on_cards(config, size, Cluster.of("a100-80", cards, 1, None, cards))


def test_cards_of_several_nodes_do_not_compute_together():
    config = read_recipe(RECIPES / "tulu3-70b.yaml", ["compute.tensor_degree=8"])
    torn = "tensor_degree 8 cannot form groups of the 4 processes of a node"
    with pytest.raises(ConfigError, match=torn):
        on_cards(config, model_size(config.checkpoint), Cluster.of("h100-80", 4, 16, None, 64))


def test_offloaded_state_is_in_the_host_s_memory():
    config = read_recipe(RECIPES / "tulu3-8b.yaml", [])
    cluster = Cluster.of("h100-80", 8, 1, None, 8)
    kept = on_cards(config, model_size(config.checkpoint), cluster)
    config = read_recipe(RECIPES / "tulu3-8b.yaml", ["compute.offload=optimizer_and_parameters"])
    gone = on_cards(config, model_size(config.checkpoint), cluster)
    assert gone.host_bytes - kept.host_bytes == pytest.approx(16 * 8.03e9, rel=0.01)


def test_what_fits_the_cards_may_not_fit_their_host_and_offload_has_no_hours():
    """70B on one node of 8: 16 bytes a weight are 1,051 GiB in the host's memory."""
    offload = "compute.offload=optimizer_and_parameters"
    verdict, takes = planned("tulu3-70b.yaml", "h100-80", 8, 1, offload)
    assert ": fits, " in verdict
    assert "unknown with compute.offload optimizer_and_parameters" in takes
    assert "s a step" not in takes
    config = read_recipe(RECIPES / "tulu3-70b.yaml", [offload, "compute.num_processes=8"])
    small = Cluster("small", dataclasses.replace(CARDS["h100-80"], host_gib=100), 8, 1, 1.0)
    found = on_cards(config, model_size(config.checkpoint), small)
    assert (found.fits_card, found.fits_host, found.fits) == (True, False, False)
    assert "DOES NOT FIT" in next(lines_of(config, model_size(config.checkpoint), small, None, None))


def test_the_8b_recipe_takes_all_pairs_of_a_card_in_one_forward():
    """16 pairs of 4,096 tokens at most (docs/engine.md): not 16 forwards of a pair each."""
    verdict, takes = planned("tulu3-8b.yaml", "h100-80", 8, 1)
    assert "65,536 tokens a forward" in verdict
    assert " of 1 forwards a card" in takes


def test_the_start_that_kl_is_measured_to_while_training_is_in_the_host_s_memory():
    cluster = Cluster.of("h100-80", 8, 8, None, 64)
    asked = ["evaluation.every=100", "evaluation.answers_every=1", "evaluation.measure_kl=true"]
    hosts = []
    for settings in ([], asked, [*asked, "reference.source=/another"]):
        config = read_recipe(RECIPES / "tulu3-70b.yaml", settings)
        hosts.append(on_cards(config, model_size(config.checkpoint), cluster).host_bytes)
    assert hosts[1] - hosts[0] == pytest.approx(4 * 70.6e9 * 8 / 64, rel=0.01)
    assert hosts[2] == hosts[0]
