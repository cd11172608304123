from __future__ import annotations

import errno
import socket
import subprocess
import sys
import time

import pytest

from libai_ext.errors import ConfigError
from libai_ext.launch import ports

LAUNCH = [sys.executable, "-m", "libai_ext.launch", "--nproc-per-node", "2", "--master-port"]


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(
        "import os, time\n"
        "keys = 'RANK MASTER_PORT LIBAI_EXT_JOB'.split()\n"
        "os.write(1, (' '.join(os.environ[k] for k in keys) + '\\n').encode())\n"
        f"while not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.05)\n"
    )
    return path


def test_one_job_has_a_port_for_as_long_as_it_holds_it(port):
    held = ports.hold([port, port + 1])
    for wanted in ([port], [port + 1]):
        with pytest.raises(ConfigError, match=f"port {wanted[0]} .*another job uses it; set"):
            ports.hold(wanted)
    for name in held:
        name.close()
    ports.hold([port])


def test_a_port_of_the_system_is_none_for_a_job(monkeypatch):
    def refuse(address):
        raise PermissionError(errno.EACCES, "as for another user")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(ConfigError, match="port 80 .*Permission denied; set another PORT"):
        ports.hold([80])


@pytest.mark.parametrize("address", ["", "127.0.0.1", "127.0.0.2"])
def test_where_a_program_listens_is_no_port_for_a_job(port, address):
    with socket.create_server((address, port)):
        with pytest.raises(ConfigError, match=f"port {port} .*Address already in use; set"):
            ports.hold([port])


def test_where_another_engine_shares_its_port_is_none_either(port):
    with socket.create_server(("", port), reuse_port=True), pytest.raises(ConfigError):
        ports.hold([port])


def test_a_port_that_was_used_a_moment_ago_can_be_had(port):
    with socket.create_server(("127.0.0.1", port)) as server:
        client = socket.create_connection(("127.0.0.1", port))
        server.accept()[0].close()  # waits for stray messages for a minute
        client.close()
    ports.hold([port])


def test_free_ports_differ():
    found = [ports.free() for _ in range(20)]
    assert len({port for port, _ in found}) == 20


@pytest.mark.parametrize(
    "name, own, warns",
    [
        ("127.0.0.1", "127.0.0.1", False),
        ("localhost", "127.0.0.1", False),
        ("203.0.113.7", "0.0.0.0", True),  # of a router before this machine
        ("this-machine", "0.0.0.0", True),
    ],
)
def test_the_address_of_the_launchers(port, monkeypatch, capsys, name, own, warns):
    resolve = socket.gethostbyname
    monkeypatch.setattr(
        socket, "gethostbyname", lambda n: "127.0.1.1" if n == "this-machine" else resolve(n)
    )
    with ports.listen(name, port) as listener:
        assert listener.getsockname() == (own, port)
    said = f"launch: port {port} is open on all addresses of this machine, not only on {name}: "
    assert capsys.readouterr().err.startswith(said if warns else "") is True
    assert bool(capsys.readouterr().err) is False


def test_of_jobs_started_together_on_one_port_one_runs(program, port):
    jobs = [
        subprocess.Popen([*LAUNCH, str(port), program], stdout=-1, stderr=-1, text=True)
        for _ in range(5)
    ]
    deadline = time.monotonic() + 60
    while [job.poll() for job in jobs].count(None) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    program.with_name("go").touch()
    outputs = [job.communicate(timeout=60) for job in jobs]
    assert sorted(job.returncode for job in jobs) == [0, 2, 2, 2, 2]
    refusal = f"error: port {port} of this machine cannot be used: another job uses it; set another"
    for job, (out, error) in zip(jobs, outputs):
        if job.returncode:
            assert (out, error) == ("", f"{refusal} PORT\n")
        else:
            ranks, places, numbers = zip(*sorted(line.split() for line in out.splitlines()))
            assert (ranks, set(places), len(set(numbers))) == (("0", "1"), {str(port)}, 1)


def test_a_job_of_one_process_listens_nowhere(program, port):
    """So ``PORT``, which many programs know, may mean another one."""
    program.with_name("go").touch()
    with socket.create_server(("", port)):
        command = [sys.executable, "-m", "libai_ext.launch", "--master-port", str(port), program]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)


@pytest.mark.parametrize(
    "words, message",
    [
        (["abc"], "PORT is a number from 1 to 65535, not 'abc'"),
        ([""], "PORT is a number from 1 to 65535, not ''"),
        (["0"], "PORT is a number from 1 to 65535, not '0'"),
        (["-1"], "PORT is a number from 1 to 65535, not '-1'"),
        (["65536"], "PORT is a number from 1 to 65535, not '65536'"),
        (["65535", "--nnodes", "2"], "PORT=65534 at most"),
    ],
)
def test_what_is_no_port(words, message):
    out = subprocess.run([*LAUNCH, *words, "x.py"], capture_output=True, text=True, timeout=60)
    assert (out.returncode, message in out.stderr) == (2, True), out.stderr
    assert "Traceback" not in out.stderr
