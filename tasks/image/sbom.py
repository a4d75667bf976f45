"""The list of packages in an image, with versions and licences, as CycloneDX 1.5 JSON (https://cyclonedx.org)."""

import inspect
import json
from typing import Any

import docker

from dpo_core.contract.errors import StepCrashed
from tasks.image import inventory
from tasks.image.engine import engine_errors
from tasks.image.image_ref import PYTHON, USER_ID, ImageRef

PIDS_LIMIT = 64


def take_inventory(client: docker.DockerClient, image_id: str) -> dict[str, Any]:
    """Run ``inventory.py`` inside the image, without network, rights, or a place to write."""
    with engine_errors("listing the image's packages"):
        printed = client.containers.run(
            image_id,
            [PYTHON, "-c", inspect.getsource(inventory)],
            remove=True,
            network_mode="none",
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            pids_limit=PIDS_LIMIT,
            user=f"{USER_ID}:{USER_ID}",
        )
    try:
        return json.loads(printed)
    except ValueError:
        raise StepCrashed(
            f"The list of the packages in {image_id[:19]} cannot be read: {printed[:300]!r}"
        ) from None


def cyclonedx(found: dict[str, Any], image: ImageRef) -> dict[str, Any]:
    """Return the document. The same image gives the same bytes: no time, no random number."""
    packages = {
        (package["kind"], package["name"], package["version"]): package for package in found["packages"]
    }
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "container",
                "name": "pairline-trainer",
                "version": image.commit or "unknown",
                "bom-ref": image.reference,
            }
        },
        "components": [_component(packages[key]) for key in sorted(packages)],
    }


def _component(package: dict[str, str]) -> dict[str, Any]:
    architecture = package.get("architecture")
    namespace = "debian/" if package["kind"] == "deb" else ""
    purl = (
        f"pkg:{package['kind']}/{namespace}{package['name'].lower()}@{package['version'].replace('+', '%2B')}"
    )
    return {
        "type": "library",
        "name": package["name"],
        "version": package["version"],
        "purl": f"{purl}?arch={architecture}" if architecture else purl,
        "licenses": [{"license": {"name": package["licence"]}}] if package["licence"] else [],
    }
