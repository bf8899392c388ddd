# SPDX-License-Identifier: Apache-2.0
"""Starts N processes of one `jaxlm` command on this machine, joined as if they were hosts.

    python scripts/launch_local.py 2 train configs/debug.gin --cpu-devices 4

All output of process 0 is shown; of the others, errors only.  Signals are passed on to all.
"""

import signal
import socket
import subprocess
import sys


def main(argv: list[str]) -> int:
    if len(argv) < 2 or not argv[0].isdigit() or int(argv[0]) < 1:
        print("usage: python scripts/launch_local.py N COMMAND [ARGUMENT ...]", file=sys.stderr)
        return 2
    num_processes, command = int(argv[0]), argv[1:]
    with socket.socket() as s:  # a free port
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    joined = ["--coordinator", address, "--num-processes", str(num_processes)]
    processes: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: object) -> None:
        for process in processes:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    for i in range(num_processes):
        process = subprocess.Popen(
            [sys.executable, "-m", "jaxlm.cli.main", *command, *joined, "--process-id", str(i)],
            stdout=None if i == 0 else subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches this process only, which passes it on once
        )
        processes.append(process)
    codes = [process.wait() for process in processes]
    code = next(filter(None, codes), 0)
    return code if code >= 0 else 128 - code  # as a shell reports death by a signal


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
