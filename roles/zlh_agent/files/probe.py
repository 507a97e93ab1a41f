"""Asks the agent of this container who it is, until it answers as expected: exit 0, or 1 with what was wrong last. Role ``zlh_agent`` runs it.

It trusts the one certificate that the agent was given, and only for the address that it listens on. Standard library alone; the token comes from
the agent's own configuration and goes nowhere else.
"""

import argparse
import http.client
import json
import ssl
import sys
import time
import tomllib
from pathlib import Path

#: Seconds for one try, and between two.
TRY_S, PAUSE_S = 3.0, 0.3


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--within", type=float, required=True, help="seconds")
    chosen = parser.parse_args()
    config = tomllib.loads(chosen.config.read_text())
    ends, wrong = time.monotonic() + chosen.within, ""
    while True:
        try:
            health = ask(config)
            wrong = differs(health, config, chosen.version)
        except (OSError, ValueError, http.client.HTTPException) as error:
            wrong = f"no answer: {error}"
        if not wrong:
            return 0
        if time.monotonic() >= ends:
            sys.stdout.write(f"within {chosen.within:g} s: {wrong}\n")
            return 1
        time.sleep(PAUSE_S)


def ask(config: dict) -> dict:
    """``GET /health``. Raises OSError (ssl.SSLError is one), ValueError, HTTPException."""
    host, port = config["bind"], config["port"]
    if "certificate" in config:
        context = ssl.create_default_context(cafile=config["certificate"])
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the leaf itself is what is trusted
        connection = http.client.HTTPSConnection(host, port, timeout=TRY_S, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=TRY_S)
    try:
        connection.request("GET", "/health", headers={"Authorization": f"Bearer {config['token']}"})
        response = connection.getresponse()
        body = response.read(65_536)
    finally:
        connection.close()
    if response.status != 200:
        raise ValueError(f"status {response.status}")
    answer = json.loads(body)
    if not isinstance(answer, dict):
        raise ValueError("its answer is no object")
    return answer


def differs(health: dict, config: dict, version: str) -> str:
    if health.get("version") != version:
        return f"it says that it is version {health.get('version')}, not {version}"
    if health.get("server_id") != config["server_id"]:
        return f"it says that it is the agent of {health.get('server_id')}, not of {config['server_id']}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
