"""The list of packages: read where they are installed, written as CycloneDX."""

import inspect
import json
import subprocess
import sys

from tasks.image import inventory
from tasks.image.image_ref import ImageRef
from tasks.image.sbom import cyclonedx

IMAGE = ImageRef(variant="cpu", image_id="sha256:" + "1" * 64, size_bytes=1, commit="c" * 40)
STATUS = """Package: zlib1g
Status: install ok installed
Architecture: amd64
Version: 1:1.2.13.dfsg-1
Description: compression library
 Version: not this one

Package: gone
Status: deinstall ok config-files
Version: 1

Package: prose
Status: install ok installed
Architecture: all
Version: 2+b1
"""


def test_what_runs_inside_an_image_lists_this_environment():
    done = subprocess.run(
        [sys.executable, "-I", "-c", inspect.getsource(inventory)], check=True, capture_output=True
    )
    packages = {package["name"].lower(): package for package in json.loads(done.stdout)["packages"]}
    assert packages["torch"]["version"].startswith("2.13.0")
    assert packages["torch"]["licence"]
    assert packages["numpy"]["licence"]


def test_debian_packages_come_from_dpkgs_record(tmp_path):
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/status").write_text(STATUS)
    (tmp_path / "usr/share/doc/zlib1g").mkdir(parents=True)
    (tmp_path / "usr/share/doc/zlib1g/copyright").write_text(
        "Files: *\nLicense: Zlib\n text\n\nFiles: b\nLicense: Zlib\n\nFiles: c\nLicense: GPL-2+\n"
    )
    (tmp_path / "usr/share/doc/prose").mkdir()
    (tmp_path / "usr/share/doc/prose/copyright").write_text(
        "See /usr/share/common-licenses/LGPL-2.1, and\n`/usr/share/common-licenses/GPL-2'."
    )
    zlib, prose = inventory.debian_packages(tmp_path)
    assert zlib == {
        "kind": "deb",
        "name": "zlib1g",
        "version": "1:1.2.13.dfsg-1",
        "architecture": "amd64",
        "licence": "GPL-2+ AND Zlib",
    }
    assert (prose["name"], prose["licence"]) == ("prose", "GPL-2 AND LGPL-2.1")
    assert inventory.debian_packages(tmp_path / "usr") == []


def test_the_document_has_the_shape_of_cyclonedx_and_the_same_bytes_every_time():
    packages = [
        {"kind": "pypi", "name": "torch", "version": "2.13.0+cpu", "licence": "BSD-3-Clause"},
        {"kind": "deb", "name": "zlib1g", "version": "1:1.2", "architecture": "amd64", "licence": ""},
        {"kind": "pypi", "name": "torch", "version": "2.13.0+cpu", "licence": "BSD-3-Clause"},
    ]
    document = cyclonedx({"python": "3.11.2", "packages": packages}, IMAGE)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.5")
    assert document["metadata"]["component"]["bom-ref"] == IMAGE.image_id
    assert [component["purl"] for component in document["components"]] == [
        "pkg:deb/debian/zlib1g@1:1.2?arch=amd64",
        "pkg:pypi/torch@2.13.0%2Bcpu",
    ]
    assert document["components"][1]["licenses"] == [{"license": {"name": "BSD-3-Clause"}}]
    assert cyclonedx({"packages": packages[::-1]}, IMAGE) == document
