"""The launcher, with small programs as ranks."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import termios
import time

import pytest
from jobs import LAUNCH, alive, wait_for


def test_ranks_get_their_place_and_their_share_of_threads(program, tmp_path, port):
    """Node 0 stays until node 1 has come."""
    come = str(tmp_path / "come")
    path = program(
        f"if rank > 1: open({come!r}, 'w').close()\n"
        f"while not os.path.exists({come!r}): time.sleep(0.05)\n"
        "keys = 'RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR OMP_NUM_THREADS'.split()\n"
        "os.write(1, (' '.join(os.environ[k] for k in keys) + '\\n').encode())\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    command = [*LAUNCH, "2", "--nnodes", "2", "--master-addr", "127.0.0.3"]
    command += ["--master-port", str(port), "--node-rank"]
    first = subprocess.Popen([*command, "0", path], env=env, stdout=subprocess.DEVNULL)
    second = [*command, "1", path]
    out = subprocess.run(second, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert first.wait(60) == 0
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert sorted(out.stdout.splitlines()) == [
        f"2 0 4 127.0.0.3 {threads}",
        f"3 1 4 127.0.0.3 {threads}",
    ]


def test_a_failing_rank_ends_the_job(program, tmp_path):
    path = program("if rank == 1: time.sleep(0.5); sys.exit(7)\ntime.sleep(600)\n")
    start = time.monotonic()
    out = subprocess.run([*LAUNCH, "3", path], capture_output=True, text=True, timeout=60)
    assert (out.returncode, time.monotonic() - start < 30) == (7, True)
    assert "rank 1 ended with exit status 7" in out.stderr
    assert alive(tmp_path) == []


@pytest.mark.parametrize("status", [0, 75])
def test_an_abort_after_the_work_is_done_is_no_failure(program, status):
    path = program(
        "from libai_ext.launch.exit_report import report_finished\n"
        f"if rank == 0: report_finished({status}); sys.exit({status})\n"
        "time.sleep(0.5); os.abort()\n"
    )
    out = subprocess.run([*LAUNCH, "2", path], capture_output=True, text=True, timeout=60)
    assert (out.returncode, "launch:" in out.stderr) == (status, False)


def test_a_killed_launcher_leaves_no_folder(program, tmp_path):
    path = program("time.sleep(600)\n")
    (tmp_path / "tmp").mkdir()
    env = dict(os.environ, TMPDIR=str(tmp_path / "tmp"))
    job = subprocess.Popen([*LAUNCH, "2", path], env=env)
    wait_for(lambda: len(alive(tmp_path)) == 2)
    job.kill()
    job.wait()
    wait_for(lambda: not alive(tmp_path))
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_killed_rank_ends_the_job(program, tmp_path):
    path = program("if rank == 0: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(600)\n")
    out = subprocess.run([*LAUNCH, "2", path], capture_output=True, text=True, timeout=60)
    assert out.returncode == 128 + signal.SIGKILL
    assert "rank 0 ended with SIGKILL" in out.stderr
    assert alive(tmp_path) == []


def test_the_first_failures_traceback_comes_last(program, tmp_path):
    """Its peers fail of it, one with a traceback of its own and one by an abort, and are noisy."""
    root = os.getcwd()
    path = program(
        f"sys.path.insert(0, {root!r})\n"
        "from libai_ext.engine import cli as entry\n"
        "def work():\n"
        "    if rank == 1: raise RuntimeError('the cause')\n"
        "    time.sleep(0.3)\n"
        "    print('lost a peer', file=sys.stderr, flush=True)\n"
        "    if rank == 0: os.abort()\n"
        "    raise RuntimeError('the consequence')\n"
        "entry.run(work)\n"
    )
    out = subprocess.run([*LAUNCH, "3", path], capture_output=True, text=True, timeout=60)
    assert out.returncode == 1
    assert out.stderr.splitlines()[-1] == "RuntimeError: the cause"
    assert "launch: rank 1 ended with exit status 1\nrank 1 failed:\nTraceback" in out.stderr
    assert "the consequence" not in out.stderr
    assert alive(tmp_path) == []


def test_what_the_user_can_mend_is_said_once_and_not_tried_again(program):
    path = program(
        f"sys.path.insert(0, {os.getcwd()!r})\n"
        "from libai_ext.engine import cli as entry\n"
        "from libai_ext.errors import ConfigError\n"
        "def work(): raise ConfigError('mend this')\n"
        "entry.run(work)\n"
    )
    command = [*LAUNCH, "3", "--restarts", "2", path]
    out = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (out.returncode, out.stderr) == (2, "error: mend this\n")


def test_what_the_user_can_mend_is_said_alone(program):
    """Its peers notice that it has left: one aborts, one crashes."""
    path = program(
        f"sys.path.insert(0, {os.getcwd()!r})\n"
        "from libai_ext.engine import cli as entry\n"
        "from libai_ext.errors import DataError\n"
        "def work():\n"
        "    if rank == 1: raise DataError('mend this')\n"
        "    time.sleep(0.2)\n"
        "    if rank == 0:\n"
        "        os.write(2, b'F20250101 00:00:00.1 7 rpc.cpp:1] Check failed: stub\\n')\n"
        "        os.abort()\n"
        "    os.write(2, b'Fatal Python error: Segmentation fault\\n\\nThread 0x1:\\n')\n"
        "    os.kill(os.getpid(), signal.SIGSEGV)\n"
        "entry.run(work)\n"
    )
    out = subprocess.run([*LAUNCH, "3", path], capture_output=True, text=True, timeout=60)
    assert (out.returncode, out.stderr) == (2, "error: mend this\n")


# What OneFlow writes before it aborts: on CUDA's error, on one that no kernel's caller expects,
# and when the eager allocator's own count says so.
ABORTS = {
    "F20250101 00:00:00.1 7 cuda_stream.cpp:173] Check failed: cudaMalloc(&p) : out of memory (2)\n"
    "*** Check failure stack trace: ***\n": "OneFlow does not say how much",
    "terminate called after throwing an instance of 'oneflow::RuntimeException'\n"
    "  what():  Error: out of memory\n": "OneFlow does not say how much",
    "F20250101 00:00:00.1 7 bin_allocator.h:396] Error! : Out of memory when allocate size : "
    "1610612736.\n": "1.50 GiB",
}


@pytest.mark.parametrize("abort", ABORTS)
def test_an_abort_for_want_of_memory_is_one_message(program, tmp_path, abort):
    """Its peer, which loses it, has a traceback."""
    path = program(
        f"sys.path.insert(0, {os.getcwd()!r})\n"
        "from libai_ext.engine import cli as entry\n"
        "from libai_ext.launch.exit_report import set_out_of_memory_advice\n"
        "set_out_of_memory_advice(f'rank {rank} of a test')\n"
        "def work():\n"
        "    if rank == 0: raise RuntimeError('lost a peer')\n"
        f"    os.write(2, {abort.encode()!r})\n"
        "    os.abort()\n"
        "entry.run(work)\n"
    )
    command = [*LAUNCH, "2", "--restarts", "2", path]
    out = subprocess.run(command, capture_output=True, text=True, timeout=60)
    said = f"error: out of GPU memory ({ABORTS[abort]} was asked for): rank 1 of a test\n"
    assert (out.returncode, out.stderr) == (2, said)
    assert alive(tmp_path) == []


def test_a_device_that_is_full_before_the_program_knows_it(program):
    path = program(f"os.write(2, {list(ABORTS)[0].encode()!r})\nos.abort()\n")
    out = subprocess.run([*LAUNCH, "1", path], capture_output=True, text=True, timeout=60)
    assert (out.returncode, out.stderr.count("\n")) == (2, 1)
    assert "before anything was built. Another process holds the GPU" in out.stderr


def test_an_error_for_want_of_memory_is_one_message(program):
    path = program(
        f"sys.path.insert(0, {os.getcwd()!r})\n"
        "from libai_ext.engine import cli as entry\n"
        "from libai_ext.launch.exit_report import set_out_of_memory_advice\n"
        "set_out_of_memory_advice(f'rank {rank} of a test')\n"
        "def work(): raise RuntimeError('Error: out of memory')\n"
        "entry.run(work)\n"
    )
    out = subprocess.run([*LAUNCH, "1", path], capture_output=True, text=True, timeout=60)
    said = (
        "error: out of GPU memory (OneFlow does not say how much was asked for): rank 0 of a test\n"
    )
    assert (out.returncode, out.stderr) == (2, said)


@pytest.mark.parametrize("length", [10, 3 << 20])
def test_the_fatal_message_of_another_abort_is_shown(program, length):
    begin = "as it comes\nF20250101 00:00:00.1 7 plan.cpp:1] Check failed: "
    path = program(f"os.write(2, {begin.encode()!r} + b'x' * {length} + b'\\n')\nos.abort()\n")
    out = subprocess.run([*LAUNCH, "1", path], capture_output=True, text=True, timeout=60)
    assert out.returncode == 128 + signal.SIGABRT
    assert out.stderr == f"{begin}{'x' * length}\nlaunch: rank 0 ended with SIGABRT\n"


@pytest.mark.parametrize(
    "output, status, said",
    [
        ("F2025 plan.cpp:1] Why", 128 + signal.SIGABRT, "launch: rank 0 ended with SIGABRT\n{}"),
        (
            "Check failed: p == port() (4567 vs. 0) Port 4567 is unavailable",
            2,
            "error: port 4567 of this machine cannot be used: a program took it; set another PORT",
        ),
    ],
)
def test_an_abort_at_the_start_of_the_engine_shows_its_output(program, output, status, said):
    """It is held back while it starts, with much noise."""
    path = program(
        "from libai_ext.startup import _filter_stderr\n"
        "with _filter_stderr():\n"
        f"    os.write(2, b'{output}')\n"
        "    os.abort()\n"
    )
    out = subprocess.run([*LAUNCH, "1", path], capture_output=True, text=True, timeout=60)
    assert (out.returncode, out.stderr.rstrip()) == (status, said.format(output))


def test_reports_are_of_the_rank_alone_and_in_no_folder(program, tmp_path):
    """Not of a program that it starts, whether it has used them itself or not."""
    child = "from libai_ext.launch.exit_report import report_failure as f; print(f('of a child'))"
    path = program(
        f"run = lambda: subprocess.run([sys.executable, '-c', {child!r}])\n"
        "run()\n"
        "from libai_ext.launch.exit_report import report_failure, report_finished\n"
        "report_finished(0), run(), report_failure('of the rank\\n'), sys.exit(3)\n"
    )
    (tmp_path / "tmp").mkdir()
    out = subprocess.run(
        [*LAUNCH, "1", path],
        env=dict(os.environ, TMPDIR=str(tmp_path / "tmp")),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert out.stdout.split() == ["False", "False"]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_restarts_after_a_crash(program, tmp_path):
    path = program(
        "attempt = int(os.environ['LIBAI_EXT_ATTEMPT'])\n"
        "print('attempt', attempt, flush=True)\n"
        "if rank == 1 and attempt < 2: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [*LAUNCH, "2", "--restarts"]
    out = subprocess.run([*command, "2", path], capture_output=True, text=True, timeout=60)
    assert out.returncode == 0
    assert "launch: restart 2 of 2" in out.stderr and "attempt 2" in out.stdout
    out = subprocess.run([*command, "1", path], capture_output=True, text=True, timeout=60)
    assert out.returncode == 128 + signal.SIGKILL
    assert alive(tmp_path) == []


def test_only_a_run_that_had_begun_goes_on(program):
    path = program(
        f"sys.path.insert(0, {os.getcwd()!r})\n"
        "from libai_ext.launch import exit_report\n"
        "if rank == 0: print(int(exit_report.goes_on()), flush=True)\n"
        "attempt = int(os.environ['LIBAI_EXT_ATTEMPT'])\n"
        "if rank == 0 and attempt == 1: exit_report.report_begun()\n"
        "if rank == 0 and attempt < 3: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [*LAUNCH, "2", "--restarts", "3", path]
    out = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (out.returncode, out.stdout.split()) == (0, ["0", "0", "1", "1"]), out.stderr


def test_a_start_that_takes_too_long_is_ended_with_a_message(program, tmp_path):
    """Rank 1 does not come; rank 0 waits for it in the engine, which holds the interpreter."""
    path = program(
        f"sys.path.insert(0, {os.getcwd()!r})\n"
        "if rank == 1: time.sleep(600)\n"
        "from libai_ext import startup\n"
        "startup.START_SECONDS = 4\n"
        "startup.start()\n"
    )
    out = subprocess.run([*LAUNCH, "2", path], capture_output=True, text=True, timeout=60)
    said = "launch: the job is ended: rank 0: the start of OneFlow (2 ranks connect to 127.0.0.1"
    assert (out.returncode, out.stderr.count(said)) == (1, 1), out.stderr
    assert "in GetEnvContext" in out.stderr
    assert alive(tmp_path) == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["0", "x.py"], "--nproc-per-node >= 1"),
        (["1", "--nnodes", "2", "x.py"], "same --master-port"),
        (["1", "--nnodes", "2", "--node-rank", "2", "x.py"], "--node-rank < --nnodes"),
        (["1"], "no script given"),
    ],
)
def test_bad_arguments(arguments, message):
    out = subprocess.run([*LAUNCH, *arguments], capture_output=True, text=True, timeout=60)
    assert out.returncode == 2
    assert message in out.stderr


def test_a_bar_is_drawn_where_the_launcher_has_a_terminal(program, tmp_path):
    """The standard error of a rank is a pipe to the launcher."""
    path = program(
        "from types import SimpleNamespace\n"
        "from libai_ext.startup import start\n"
        "start()\n"
        "from libai_ext.engine.progress import Progress\n"
        "hook = Progress(period=9)\n"
        "hook.trainer = SimpleNamespace(max_iter=8, start_iter=0, iter=0)\n"
        "hook.before_train()\n"
        "for hook.trainer.iter in range(5): hook.after_step()\n"
        "hook.bar.refresh()\n"
        "os._exit(0)\n"
    )
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    result = subprocess.run([*LAUNCH, "1", path], stderr=theirs, timeout=120)
    os.close(theirs)
    text = os.read(ours, 1 << 16).decode()
    assert result.returncode == 0, text
    shown = text.rstrip().rsplit("\r", 1)[-1]
    assert " 62%|" in shown and "5/8" in shown and len(shown) < 60
