"""Debian's real registry: an image goes there and comes back by digest, and a refusal is an error."""

import json

import pytest

from dpo_core.contract.errors import ConfigError, RemoteError
from examples.slurm.private_cluster import free_ports
from tasks.image.push import Login

pytestmark = pytest.mark.integration
PRINT = ["python", "-c", "import alpha; print('works')"]


@pytest.fixture
def repository(registry) -> str:
    return f"{registry.address}/team/trainer"


def test_a_pushed_image_runs_by_digest_and_comes_back_by_it(
    build, shared_engine, registry, repository, tmp_path
):
    image, said = build(login=registry.login, repository=repository, push=True)
    assert image.reference == image.digest
    assert image.digest.startswith(f"{repository}@sha256:")
    assert any("digest: sha256:" in line for line in said)
    assert registry.login.password not in "".join(said)
    (record,) = (tmp_path / "store/images").glob("*/image.json")
    assert json.loads(record.read_text())["digest"] == image.digest
    assert build(login=registry.login, repository=repository, push=True)[0] == image
    assert (
        shared_engine.containers.run(image.reference, PRINT, remove=True, read_only=True, network_mode="none")
        == b"works\n"
    )

    shared_engine.images.remove(image.image_id, force=True)
    fetched, said = build(login=registry.login, use=image.digest)
    assert said[0] == f"Fetching {image.digest}"
    assert (fetched.digest, fetched.image_id, fetched.context_sha256) == (
        image.digest,
        image.image_id,
        image.context_sha256,
    )
    assert build(use=image.digest)[1] == []  # it is here now
    by_id, _ = build(use=image.image_id)
    assert by_id.reference == image.image_id


def test_a_registry_that_refuses_is_an_error(build, registry, repository, tmp_path):
    refused = rf"registry refused the push to {repository}.*image\.registry_block"
    for login in (Login(registry.login.username, "wrong"), Login("eve", registry.login.password), None):
        with pytest.raises(ConfigError, match=refused) as caught:
            build(login=login, repository=f"{repository}-refused", push=True)
        assert "wrong" not in str(caught.value)
    assert not list((tmp_path / "store/images").glob("*/image.json"))


def test_a_registry_that_is_not_there_is_worth_a_retry(build):
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(RemoteError, match=rf"push to {address}/trainer failed"):
        build(repository=f"{address}/trainer", push=True)


def test_what_a_registry_does_not_hold_is_said_so(build, registry, repository):
    absent = f"{repository}@sha256:{'0' * 64}"
    with pytest.raises(ConfigError, match=absent):
        build(login=registry.login, use=absent)
