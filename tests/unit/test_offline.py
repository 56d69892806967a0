"""Offline means offline: another address cannot be reached, this machine can; with a namespace and without."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

WRAPPER = Path(__file__).resolve().parents[1] / "offline" / "run"
PROBE = """
import socket, urllib.request
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname(), timeout=5).close()
print("loopback reached")
for target in (("192.0.2.1", 80), ("example.invalid", 80)):
    try:
        socket.create_connection(target, timeout=5)
    except OSError as error:
        print("refused", target[0], type(error).__name__)
try:
    urllib.request.urlopen("http://192.0.2.1/", timeout=5)
except OSError:
    print("refused url")
"""


@pytest.mark.parametrize("how", ["", "sockets"])
def test_only_this_machine_can_be_reached(how):
    command = [str(WRAPPER), sys.executable, "-c", PROBE]
    environment = os.environ | {"REPRODUCTIONS_OFFLINE": how}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert told[0] == "loopback reached"
    assert [line.split()[1] for line in told[1:]] == ["192.0.2.1", "example.invalid", "url"]
    assert ("blocked sockets" in done.stderr) or not how


def test_exit_code_is_that_of_the_command():
    assert subprocess.run([str(WRAPPER), "false"], capture_output=True).returncode == 1
