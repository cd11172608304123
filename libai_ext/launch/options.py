"""The options of the launcher, and their defaults from the environment."""

from __future__ import annotations

import argparse
import os
import secrets
import sys

from libai_ext.launch import nodes, ports
from libai_ext.launch.rendezvous import SECRET


def parse(argv: list[str] | None, description: str) -> argparse.Namespace:
    """Parse the command line and the environment.

    Extra attributes: ``hosts`` (from HOSTFILE, or None), ``secret`` (from JOB_SECRET).
    """
    parser = argparse.ArgumentParser(prog="libai_ext.launch", description=description)
    parser.add_argument("--nproc-per-node", type=int, default=1)
    place = {key: value for key, value in os.environ.items() if value}
    parser.add_argument(
        "--nnodes", type=int, default=place.get("NODE"), help="default: by HOSTFILE, by Slurm, or 1"
    )
    parser.add_argument("--node-rank", type=int, default=place.get("NODE_RANK", 0))
    parser.add_argument(
        "--master-addr", default=place.get("ADDR", "127.0.0.1"), help="address of node 0"
    )
    parser.add_argument(
        "--master-port",
        type=ports.number,
        default=place.get("PORT"),
        help="required for several nodes; default: any free port",
    )
    parser.add_argument("--restarts", type=int, default=0, help="how often, after a crash")
    parser.add_argument(
        "--stdin-control",
        action="store_true",
        help="take the secret, variables and signals from stdin",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="SCRIPT ...")
    args = parser.parse_args(argv)
    args.arguments = sys.argv[1:] if argv is None else argv
    try:
        _place(args, os.environ)
    except ValueError as error:
        parser.error(str(error))
    if args.nproc_per_node < 1 or not 0 <= args.node_rank < args.nnodes:
        parser.error("set --nproc-per-node >= 1 and 0 <= --node-rank < --nnodes")
    if args.nnodes > 1 and args.master_port is None:
        parser.error("set the same --master-port (PORT) on each of several nodes")
    if (args.nnodes > 1 or args.hosts) and args.master_port == ports.LAST:
        parser.error(
            f"several nodes need the port after PORT too: set PORT={ports.LAST - 1} at most"
        )
    if args.restarts < 0:
        parser.error("set --restarts >= 0")
    if not args.command:
        parser.error("no script given")
    return args


def _place(args: argparse.Namespace, env) -> None:
    """If the number of nodes is not given, take it from HOSTFILE or Slurm.

    Raises:
        ValueError: HOSTFILE is wrong, or Slurm starts several launchers on a node.
    """
    args.hosts = None
    args.secret = env.get(SECRET, "")
    if args.nnodes is not None:
        return
    args.nnodes = 1
    if env.get("HOSTFILE"):
        args.hosts = nodes.read_hosts(env["HOSTFILE"])
        return
    command = nodes.srun(env)
    if command:
        env.setdefault(SECRET, secrets.token_hex(16))  # Slurm gives all tasks the environment
        module = [sys.executable, "-m", "libai_ext.launch"]
        os.execvp(command[0], [*command, *module, *args.arguments])
    place = nodes.slurm(env)
    if place:
        args.nnodes, args.node_rank, args.master_addr = place[:3]
        args.master_port = args.master_port or place.port


def hold_ports(args: argparse.Namespace) -> None:
    """Reserve the ports that this machine listens on, until the job ends."""
    if args.master_port is None:
        args.master_port, args.held = ports.free()
    elif args.node_rank == 0 and args.nnodes * args.nproc_per_node > 1:
        args.held = ports.hold([args.master_port + i for i in range(min(args.nnodes, 2))])
